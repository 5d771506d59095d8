"""What preview shows is what the model gets, by the picture, by the model's own processor, and by
real vLLM on the CPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import PROJECT, Run
from PIL import Image
from video_pipeline.commands import preview
from video_pipeline.errors import UserError
from video_pipeline.report.contact_sheet import GAP, TEXT
from video_pipeline.testing.qwen_vl import FAMILIES
from video_pipeline.testing.tiny_model import write_tiny_model

FPS, SIZE, THUMB = 10, 112, 200


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A folder with a tiny model of each family and a clip: picture ``n`` is ``4 n`` bright."""
    folder = tmp_path_factory.mktemp("material")
    for family in FAMILIES:
        write_tiny_model(folder / family, family)
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"qp": "1"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(40):
            grey = np.full((SIZE, SIZE, 3), 4 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


@pytest.fixture
def show(here: Run, material: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs preview without an engine, in this process; returns what it printed."""

    def call(*arguments: str, family: str = FAMILIES[0]) -> str:
        model = ("--model", str(material / family), "--no-engine")
        monkeypatch.setattr(sys, "argv", ["preview", *arguments, *model])
        preview.main()
        return capsys.readouterr().out

    return call


def printed_times(printed: str) -> list[float]:
    return [float(t) for t in re.findall(r"^(\d+\.\d\d) s  \d+x\d+$", printed, re.MULTILINE)]


def test_the_sheet_has_the_frames_of_the_printed_times(show, material):
    times = printed_times(show("--video", str(material / "clip.mp4"), "--sheet", "sheet.png"))
    assert len(times) == 8  # 2 a second
    with Image.open("sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    seen = []
    for place in range(len(times)):
        row, column = divmod(place, 5)
        top = GAP + row * (THUMB + TEXT + 2 * GAP)
        left = GAP + column * (THUMB + GAP)
        seen.append(pixels[top + 1 : top + THUMB - 1, left + 1 : left + THUMB - 1].mean() / 4 / FPS)
    assert seen == pytest.approx(times, abs=0.04)


@pytest.mark.parametrize("family", FAMILIES)
def test_times_and_tokens_are_those_of_the_models_own_processor(show, material, family):
    from transformers import AutoProcessor

    printed = show("--video", str(material / "clip.mp4"), family=family)
    times = printed_times(printed)
    pairs = list(zip(times[::2], times[1::2], strict=True))
    # the processor samples by itself here, and writes the times of Qwen3-VL into the prompt
    processor = AutoProcessor.from_pretrained(material / family)
    with av.open(str(material / "clip.mp4")) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    indices = [round(seconds * FPS) for seconds in times]
    video = frames[indices].transpose(0, 3, 1, 2)
    metadata = {"fps": FPS, "frames_indices": indices, "total_num_frames": 40}
    prompt = re.search(r"─ prompt ─+\n(.*)\ntokens: ", printed, re.DOTALL)[1]
    ids = processor(
        text=[prompt], videos=[video], video_metadata=[metadata], do_sample_frames=False
    )["input_ids"][0]
    visual = ids.count(processor.video_token_id)
    assert visual > 0
    assert f"tokens: {len(ids)} in the prompt, {visual} of them visual" in printed
    said = [float(t) for t in re.findall(r"<(\d+\.\d) seconds>", processor.decode(ids))]
    if family == "qwen3_vl":
        assert said == pytest.approx([(a + b) / 2 for a, b in pairs], abs=0.051)
    else:
        assert said == []


DATASET = """\
from video_pipeline.data.base import BaseDataset
from video_pipeline.data.registry import register_dataset


@register_dataset("mine")
class Mine(BaseDataset):
    def __getitem__(self, i):
        BODY
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"ZeroDivisionError: division by zero \(.*mine\.py, line 8\)$"),
        ("return {}", "dataset Mine: __getitem__ must return a dict with '__key'"),
        ("return {'__key': 'x', 'llm_input': {}}", "was asked for sample 'preview' and returned"),
    ],
)
def test_a_dataset_that_fails_is_named(show, here, body, message):
    (here.folder / "mine.py").write_text(DATASET.replace("BODY", body))
    (here.folder / "mine.yaml").write_text("run: {dataset: mine}\n")
    with pytest.raises(UserError, match=message):
        show("mine.py", "--configfile", "mine.yaml", "--video", "a.mp4")


def test_a_task_that_is_not_there(show, here):
    (here.folder / "a.mp4").touch()
    with pytest.raises(UserError, match="no task is called 'describ'; did you mean 'describe'"):
        show("--task", "describ", "--video", "a.mp4")


def test_of_clips_the_first_window_is_shown(show, here, material):
    (here.folder / "clips.yaml").write_text(
        "run: {dataset: clips}\ntask_params: {clip_seconds: 2}\n"
    )
    printed = show("--configfile", "clips.yaml", "--video", str(material / "clip.mp4"))
    assert 0 < max(printed_times(printed)) <= 2  # of four seconds


def test_real_vllm_answers_about_a_folder(run: Run, material, forked_engine):
    (run.folder / "videos").mkdir()
    for name in ("a", "b"):
        shutil.copy(material / "clip.mp4", run.folder / "videos" / f"{name}.mp4")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "video_pipeline", "preview", "--task", "describe"),
            *("--configfile", str(PROJECT / "config" / "demo.yaml")),
            *("--model", str(material / FAMILIES[0]), "--video", "videos"),
        ],
        cwd=run.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answers = re.findall(
        r"─ answer to describe ─+\n(.*)\n\(cut off after 24 tokens.*\n─+ parsed ─+\n({[^}]*})",
        done.stdout,
    )
    assert len(answers) == 2
    for answer, parsed in answers:
        assert len(answer) == 24  # a token is a byte
        assert json.loads(parsed) == {"description": answer.strip()}
    assert done.stderr.startswith("preview: reads 2 samples for the task describe and the model ")
    assert re.search(r"\npreview: loads .* and asks it", done.stderr)
    assert "EngineCore" not in done.stderr
