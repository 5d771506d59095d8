"""The plan: it counts what a run takes, and a bad sample costs only itself."""

from __future__ import annotations

import json
import random
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from helpers import EXPAND, keys, read_jsonl, samples
from PIL import Image
from video_pipeline.common import progress
from video_pipeline.config import Config, load_config
from video_pipeline.data.choosing import create_dataset
from video_pipeline.engine.base import RequestRefused
from video_pipeline.errors import EnvironmentFault, UserError
from video_pipeline.estimate import totals
from video_pipeline.estimate.counting import CountingPreparer, PromptCost, ShownMedium
from video_pipeline.estimate.estimate import make_plan, plan_stages
from video_pipeline.estimate.expected import expected_costs
from video_pipeline.estimate.totals import CostTotals, SampleCost
from video_pipeline.gpu.devices import Device
from video_pipeline.model import token_count
from video_pipeline.model.processor import processor_folder
from video_pipeline.model.token_count import TokenCount, count_tokens
from video_pipeline.run.chunks import ChunkEntry
from video_pipeline.run.layout import Layout
from video_pipeline.run.run import Run
from video_pipeline.run.statistics import JobStatistics, StatisticsFile
from video_pipeline.samples.input import task_sample
from video_pipeline.split.split import split
from video_pipeline.tasks.base import ONLY_PART
from video_pipeline.tasks.registry import load_task
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.qwen_vl import FAMILIES
from video_pipeline.testing.tiny_model import write_tiny_model
from video_pipeline.video.reader import VideoInfo

pytestmark = [pytest.mark.slow, pytest.mark.as_users]

# --- tokens ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A folder with a model of each family, clips of different shapes, and an image."""
    folder = tmp_path_factory.mktemp("material")
    for family in FAMILIES:
        write_tiny_model(folder / family, family)
    write_clip(folder / "wide.mp4", width=320, height=96, seconds=3.0)
    write_clip(folder / "turned.mp4", width=160, height=96, seconds=1.0, rotation=90)
    write_clip(folder / "slow.mkv", width=130, height=98, fps=7, seconds=6.0)
    write_clip(folder / "vp9.webm", codec="libvpx-vp9", width=96, height=160, seconds=2.5)
    noise = np.random.default_rng(0).integers(0, 256, (100, 177, 3), np.uint8)
    for number in range(3):
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


VIDEOS = ("wide.mp4", "turned.mp4", "slow.mkv", "vp9.webm")
CASES = [
    *({"path": name, "vision": {"fps": 2.0}} for name in VIDEOS),
    *(
        {"path": name, "vision": {"fps": 5.7, "max_frames": 9, "total_pixels": 40 * 784}}
        for name in VIDEOS
    ),
    *({"path": name, "vision": {"nframes": 6, "max_pixels": 9 * 784}} for name in VIDEOS),
    {"path": "slow.mkv", "video_start": 1.3, "video_end": 4.9},
    {"path": "wide.mp4", "vision": {"resize": "exact", "total_pixels": 40 * 784}},
    {"path": "wide.mp4", "dataset": "keyframes"},
    {"path": "wide.mp4", "dataset": "first_frame"},
    {"path": "0.png", "dataset": "image"},
    {"path": ["0.png", "1.png", "2.png"], "dataset": "frames"},
    {"task": "rewrite", "previous": {"output_text": "a <|video_pad|> title"}},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}")
def test_measured_tokens_are_those_of_the_pixels(material, family, case, monkeypatch):
    case = dict(case)
    config = load_config(
        {
            "data": {"video_root": str(material)},
            "vision": {"min_pixels": 3136, **case.pop("vision", {})},
            "run": {"task": case.pop("task", "describe"), "dataset": case.pop("dataset", None)},
        }
    )
    model = str(material / family)
    sample = task_sample("key", case, config)
    dataset = create_dataset(config, load_task(config), [sample], model)
    preparer = CountingPreparer(config, model)
    preparer.start()
    (counted,) = preparer.prepare(
        {ONLY_PART: preparer.read(dataset, 0)["llm_input"]}, "key"
    ).values()
    pixels = dataset[0]["llm_input"]
    monkeypatch.setattr(token_count, "_without_pixels", lambda picture: picture)
    assert counted.tokens == count_tokens(model, pixels)
    media = pixels.get("multi_modal_data", {})
    pictures = [len(frames) for frames, _ in media.get("video", [])] or [1] * len(media)
    assert [each.num_frames for each in counted.media] == pictures
    assert bool(counted.tokens.visual) == bool(media)


PIXELS = """
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset


@register_dataset("plain")
class Plain(QwenVideoDataset):
    def read(self, messages):
        media = super().read(messages)
        (frames, metadata), = media["multi_modal_data"]["video"]
        self.brightness = frames.numpy().mean()
        return media
"""


def test_a_dataset_that_looks_at_pixels_gets_them(here, material):
    here.write_plugin(PIXELS)
    here.configure(data={"video_root": str(material)}, run={"task": "describe", "dataset": "plain"})
    config = here.config
    task = load_task(config)
    dataset = create_dataset(
        config, task, [task_sample("key", {"path": "wide.mp4"}, config)], "simulated"
    )
    item = CountingPreparer(config, "simulated").read(dataset, 0)
    assert dataset.brightness > 0
    assert not item["llm_input"]["multi_modal_data"]["video"][0][0].is_meta


def test_what_the_processor_cannot_take_is_refused(material):
    preparer = CountingPreparer(load_config({}), str(material / FAMILIES[0]))
    llm_input = {"prompt": "<|video_pad|>", "multi_modal_data": {"video": [7]}}
    with pytest.raises(RequestRefused) as refused:
        preparer.prepare({ONLY_PART: llm_input}, "key")
    assert refused.value.type == "TypeError"


# --- the plan of a run ---------------------------------------------------------------------------


@pytest.fixture
def plan(here):
    """Makes the plan of samples; returns its report and its lines."""

    def call(entries=None, threads: int = 1):
        if entries is not None:
            here.write_samples(entries)
        layout = Layout.of(here.config, 0)
        make_plan(here.config, layout, threads)
        assert not layout.plan_scratch.exists()
        return json.loads(layout.plan_report.read_text()), read_jsonl(layout.plan_samples)

    return call


def test_a_bad_sample_costs_only_itself(plan, here, limit_begins):
    here.configure(data={"sample_timeout_s": 1.0})
    limit_begins(lambda position, *_: position == 4 and here.reads()["4"])
    entries = samples(6)
    entries[1]["do"], entries[3]["do"], entries[4]["do"] = "surrogate", "segfault", "hang"
    report, lines = plan(entries, threads=2)
    assert [line["key"] for line in lines] == keys(6)
    assert [line["readable"] for line in lines] == [True, False, True, False, False, True]
    assert lines[1]["error"] == {
        "stage": "read",
        "type": "ValueError",
        "message": "no such clip: caf\\udce9",  # which no JSON can carry as it is
    }
    assert [lines[at]["error"]["stage"] for at in (3, 4)] == ["crash", "timeout"]
    assert (report["samples"]["readable"], report["samples"]["unreadable"]) == (3, 3)
    assert sum(error["count"] for error in report["errors"]) == 3
    assert report["tokens"]["prompt"]["total"] == 30  # 40 characters each
    # a crash may be an accident: it is tried twice, the others once
    assert here.reads() == {**dict.fromkeys(keys(6), 1), "1": 2, "3": 2}


def test_a_random_sample_stands_for_all(plan, here):
    here.configure(
        plan={
            "samples": 5,
            "prompt_tokens_per_second": 10,
            "completion_tokens_per_second": 2,
            "expected_completion_tokens": 8,
            "price_per_gpu_hour": 3,
        }
    )
    report, lines = plan(samples(50))
    drawn = sorted(random.Random(0).sample(range(50), 5))
    assert [line["key"] for line in lines] == [str(number) for number in drawn]
    assert report["samples"]["looked_at"] == 5
    assert report["samples"]["distinct"] == 50
    assert report["scale"] == 10
    expected = report["expected"]
    assert (expected["prompts"], expected["prompt_tokens"]) == (50, 500)
    assert expected["completion_tokens"] == 400
    assert expected["gpu_hours"] == pytest.approx((500 / 10 + 400 / 2) / 3600)
    assert expected["cost"] == pytest.approx(3 * 250 / 3600)


def test_progress_is_told_while_it_works(plan, here, monkeypatch, caplog):
    here.edit_plugin("    misbehave(", "    time.sleep(0.1)\n        misbehave(")
    monkeypatch.setattr(progress, "LOG_SECONDS", -1.0)
    caplog.set_level("INFO")
    plan(samples(4))
    assert re.search(r"plan: [123] of 4 \([\d.]+%\) samples, \d+ a second, .+ left", caplog.text)


def test_no_readable_sample(plan, capsys):
    report, _ = plan(samples(3, do="raise"))
    assert report["tokens"]["prompt"] is None
    assert report["expected"]["prompts"] == 0
    assert report["errors"] == [
        {
            "stage": "read",
            "type": "ValueError",
            "message": "no such clip",
            "count": 3,
            "example": "0.mp4",
        }
    ]
    assert "read: ValueError: no such clip (such as 0.mp4)" in capsys.readouterr().out


def test_a_long_name_is_not_cut_off(plan, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = f"{'0123456789' * 9}.mp4"
    plan([{"id": "long", "path": name, "do": "raise"}])
    assert name in "".join(capsys.readouterr().out.split())


def test_an_empty_input(plan, capsys):
    report, lines = plan([])
    assert lines == []
    assert report["samples"]["distinct"] == report["expected"]["prompts"] == 0
    assert report["histograms"] == {"prompt_tokens": [], "seconds": []}
    assert "0 (0 lines" in capsys.readouterr().out


def test_bad_lines_are_told_as_split_tells_them(plan, here):
    (here.folder / "samples.jsonl").write_text('{"id": 1, "path": "a.mp4"}\nno JSON\n{"id": 2}\n')
    with pytest.raises(UserError) as by_plan:
        plan()
    with pytest.raises(UserError) as by_split:
        split(here.config, Layout.of(here.config, 1))
    assert str(by_plan.value) == str(by_split.value)
    assert "line 2: not JSON" in str(by_plan.value)


def test_a_missing_input(plan):
    with pytest.raises(UserError, match=r"cannot read /.+/samples\.jsonl: .*No such file"):
        plan()


def test_an_input_that_a_stage_has_yet_to_write(here, caplog):
    here.settings["stages"] = [{"name": "ask"}, {"name": "prose"}]
    here.configure()
    here.write_samples(samples(2))
    configs = [config for _, config in here.config.by_stage()]
    plan_stages(configs, 1)
    assert (here.folder / "results/out.ask.plan.json").exists()
    assert not (here.folder / "results/out.plan.json").exists()
    assert "results/out.jsonl: left out" in caplog.text


def test_a_model_that_is_not_here(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"(?s)no-such/model is no folder.*hf download no-such/mo"):
        processor_folder("no-such/model", "v1")
    with pytest.raises(UserError, match="/no/such/folder is no folder here"):
        processor_folder("/no/such/folder")


def test_a_folder_without_a_processor(tmp_path):
    with pytest.raises(UserError, match=f"cannot load the processor of {tmp_path}"):
        CountingPreparer(load_config({}), str(tmp_path)).start()


def spend(journal: Path, number: int, **values) -> None:
    """What an attempt left behind that wrote to this journal."""
    spent = JobStatistics(0, 1, **{"task": "ask", "inferred": 4, **values})
    StatisticsFile(journal / f"attempt.s.rank0.{number}.jsonl").write(*spent.snapshot())


def test_earlier_attempts_of_the_same_task_and_settings_give_the_rate(here):
    config = here.config
    layout = Layout.of(config, 0)
    findings = CostTotals(config, BytesIO())
    for _ in range(8):
        findings.note(cost_of(TokenCount(10, 0, 0)))

    def expected(of: Config = config) -> dict[str, Any]:
        return expected_costs(Run(of, layout), findings, 1.0)

    assert expected()["gpu_hours"] is None
    journal = Run(config, layout).journal()
    spent = {"prompt_tokens": 300, "completion_tokens": 100}
    spend(journal, 1, seconds=10.0, **spent)
    spend(journal, 2, seconds=15.0, gpus=2, **spent)  # 30 s of a GPU
    spend(journal, 3, seconds=5.0, inferred=0)  # no answer, no rate
    assert expected()["tokens_per_second"] == 20
    assert expected()["completion_tokens"] == 200
    assert expected()["gpu_hours"] == pytest.approx((80 + 200) / 20 / 3600)
    assert str(journal) in expected()["formula"]
    # another task of the same settings, and other settings, say nothing about this run
    spend(journal, 4, seconds=1000.0, task="describe", **spent)
    assert expected()["tokens_per_second"] == 20
    here.configure(sampling={"max_tokens": 9})
    assert expected(here.config)["gpu_hours"] is None
    # runs without data.resume have journals of their own
    spend(journal.with_name(f"{journal.name}-abc"), 5, seconds=40.0, **spent)
    assert expected()["tokens_per_second"] == 15


H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


def test_a_line_that_crashes_expand_costs_only_itself(plan, here):
    here.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    entries = samples(3)
    entries[1]["do"] = "segfault"
    _, lines = plan(entries)
    windows = [[f"{number}@0.0-1.0", f"{number}@1.0-2.5"] for number in (0, 2)]
    assert [line["key"] for line in lines] == [*windows[0], "1", *windows[1]]
    assert [line["readable"] for line in lines] == [True, True, False, True, True]


@pytest.fixture
def expected_of(here, monkeypatch):
    """What a plan expects of eight prompts of 10 tokens, on a machine with these devices."""

    def expected(*cards: str, error: Exception | None = None) -> dict[str, Any]:
        def devices() -> list[Device]:
            if error is not None:
                raise error
            return [Device(str(n), f"GPU-{n}", card) for n, card in enumerate(cards)]

        monkeypatch.setattr("video_pipeline.estimate.expected.devices", devices)
        findings = CostTotals(here.config, BytesIO())
        for _ in range(8):
            findings.note(cost_of(TokenCount(10, 0, 0)))
        return expected_costs(Run(here.config, Layout.of(here.config, 0)), findings, 1.0)

    return expected


def test_the_rate_is_that_of_one_card(here, expected_of):
    """Of this machine's, or else of the card that was last used."""
    journal = Run(here.config, Layout.of(here.config, 0)).journal()
    spent = {"prompt_tokens": 300, "completion_tokens": 100, "gpus": 1}
    spend(journal, 1, seconds=10.0, card=L4, started_at=1.0, **spent)
    spend(journal, 2, seconds=1.0, card=H100, started_at=2.0, **spent)
    spend(journal, 3, seconds=100.0, card=None, started_at=0.0, **{**spent, "gpus": 0})
    for cards, rate, named in (
        ((), 400, H100),
        ((L4, L4), 40, L4),
        ((H100,), 400, H100),
        (("NVIDIA A10",), 400, H100),
        ((L4, H100), 400, H100),
    ):
        plan = expected_of(*cards)
        assert plan["tokens_per_second"] == rate
        assert f"of earlier attempts on {named} ({journal})" in plan["formula"]
    # a plan needs no GPU that works, nor one that CUDA_VISIBLE_DEVICES names rightly
    for error in (EnvironmentFault("nvidia-smi hangs"), UserError("nvidia-smi lists no GPU 7")):
        assert expected_of(error=error)["tokens_per_second"] == 400


def test_other_settings_of_the_same_model_give_the_rate_and_no_answers(here, expected_of):
    """Where no attempt had these settings; the nearest output counts, too."""
    other = Layout.of(here.config, 0).journal.parent / "another" / "0123"
    spent = {"prompt_tokens": 300, "completion_tokens": 100, "gpus": 1, "seconds": 10.0}
    same = {"model": "simulated", "card": H100}
    spend(other, 1, **{**same, "model": "another"}, **spent)
    spend(other, 2, **{**same, "card": None}, **spent)
    spend(other, 3, **same, quantization="fp8", **spent)
    assert expected_of()["gpu_hours"] is None
    spend(other, 4, **same, task="describe", **spent)
    plan = expected_of()
    assert plan["tokens_per_second"] == 40
    assert "same model and other settings on NVIDIA H100 80GB HBM3" in plan["formula"]
    assert plan["completion_tokens_from"] == "sampling.max_tokens, the worst case"
    # attempts with these settings are better
    journal = Run(here.config, Layout.of(here.config, 0)).journal()
    spend(journal, 5, **same, **{**spent, "seconds": 20.0})
    assert expected_of()["tokens_per_second"] == 20
    assert "other settings" not in expected_of()["formula"]


# --- what is made of it --------------------------------------------------------------------------


def findings_of(max_item_tokens=None) -> CostTotals:
    config = load_config(
        {"vllm": {"max_model_len": 1000}, "sampling": {"max_tokens": 100}, "data": {}}
    )
    findings = CostTotals(config, BytesIO())
    findings.max_item_tokens = max_item_tokens
    return findings


def cost_of(
    *tokens: TokenCount, media: tuple[ShownMedium, ...] = (), seconds: float = 0.0
) -> SampleCost:
    counted = {str(number): PromptCost(one, media) for number, one in enumerate(tokens)}
    entry = ChunkEntry("key", dict.fromkeys(counted, ""), b'{"path": "a.mp4"}', {})
    return SampleCost(entry, seconds, counted)


@pytest.mark.parametrize(
    ("tokens", "flags"),
    [
        (TokenCount(900, 50, 50), []),
        (TokenCount(901, 50, 50), ["answer_may_be_cut"]),
        (TokenCount(999, 50, 50), ["answer_may_be_cut"]),
        (TokenCount(1000, 50, 50), ["prompt_too_long"]),
        (TokenCount(500, 300, 200), []),
        (TokenCount(500, 300, 201), ["item_too_large"]),
        (TokenCount(1200, 300, 201), ["prompt_too_long", "item_too_large"]),
    ],
)
def test_what_is_over_the_limits(tokens, flags):
    findings = findings_of(max_item_tokens=200)
    findings.note(cost_of(tokens))
    line = orjson.loads(findings._lines.getvalue())
    assert line["flags"] == flags
    assert findings.flagged == dict.fromkeys(flags, 1)
    refused = bool(set(flags) - {"answer_may_be_cut"})
    assert findings.refused == refused
    assert findings.tokens_to_run == (0 if refused else tokens.prompt)


def test_an_unknown_encoder_cache_flags_nothing():
    findings = findings_of()
    findings.note(cost_of(TokenCount(500, 300, 10**9)))
    assert not findings.flagged


def test_several_questions_share_their_media():
    info = VideoInfo(
        frames=60, fps=30.0, duration=2.0, width=64, height=48, codec="h264", num_bytes=1000
    )
    findings = findings_of()
    shown = (ShownMedium(8, info), ShownMedium(1, None))
    findings.note(cost_of(TokenCount(100, 40, 40), TokenCount(950, 40, 40), media=shown, seconds=2))
    line = orjson.loads(findings._lines.getvalue())
    assert line["prompt_tokens_of"] == {"0": 100, "1": 950}
    assert (line["prompt_tokens"], line["visual_tokens"]) == (1050, 80)
    assert (line["frames"], line["bytes"], line["codec"]) == (9, 1000, "h264")
    assert (line["width"], line["height"], line["seconds"]) == (64, 48, 2)
    assert line["flags"] == ["answer_may_be_cut"]
    assert findings.sizes == {"64x48": 1}
    assert list(findings.prompt_tokens) == [100, 950]


def test_many_kinds_of_errors_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(totals, "ERROR_KINDS", 3)
    findings = findings_of()
    for number in range(10):
        error = {"stage": "read", "type": "ValueError", "message": f"frame {number}"}
        findings.note(SampleCost(cost_of().entry, error=error))
    assert findings.errors.total() == 10
    assert findings.errors["read", "ValueError", "(other messages)"] == 7
    assert len(findings.errors) == 4
