"""The tokens of the plan are those of the run, with real vLLM on the CPU."""

from __future__ import annotations

import json

import pytest
import yaml
from helpers import PROJECT, Run, Splitter, read_jsonl
from PIL import Image
from video_pipeline.estimate.estimate import make_plan
from video_pipeline.model.flops import ModelFlops
from video_pipeline.run.layout import Layout
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model

DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))

# Two questions about a video, an image, or a video and an image.
TASK = """
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class Questions(Task):
    name = "questions_of_plan"

    def build_messages(self, sample):
        shown = []
        if sample["path"].endswith(".png"):
            shown.append({"type": "image", "image": sample["__video_uri"]})
        else:
            shown.append({"type": "video", "video": sample["__video_uri"]})
        if "thumbnail" in sample:
            shown.append({"type": "image", "image": sample["thumbnail"]})
        questions = {"short": "What is it?", "long": f"Say more about it, please: {sample['id']}"}
        return {
            name: [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
            for name, question in questions.items()
        }
"""


@pytest.mark.parametrize(
    "family", [pytest.param("qwen2_5_vl", marks=pytest.mark.families), "qwen3_vl"]
)
def test_planned_tokens_are_those_of_the_run(splitting: Splitter, family, forked_engine):
    here = splitting.run
    write_tiny_model(here.folder / "model", family)
    write_clip(here.folder / "wide.mp4", width=320, height=128, seconds=4.0)
    write_clip(here.folder / "turned.mp4", width=200, height=120, seconds=2.0, rotation=90)
    Image.new("RGB", (300, 200)).save(here.folder / "picture.png")
    here.write_plugin(TASK)
    here.settings = {section: dict(keys) for section, keys in DEMO.items()}
    here.configure(
        data={"output_jsonl": "results/out.jsonl", "id_field": "id", "num_shards": 1},
        vision={"fps": 3.0},
        vllm={"model": str(here.folder / "model")},
        sampling={"max_tokens": 2},
        run={"task": "questions_of_plan", "plugins": ["plugin.py"]},
        report={"samples": 0},
    )
    here.write_samples(
        [
            {"id": "whole", "path": "wide.mp4"},
            {"id": "segment", "path": "wide.mp4", "video_start": 1.2, "video_end": 3.1},
            {"id": "both", "path": "turned.mp4", "thumbnail": "picture.png"},
            {"id": "image", "path": "picture.png"},
            {"id": "a <|video_pad|> title that <|im_end|>s", "path": "wide.mp4"},
            {"id": "missing", "path": "missing.mp4"},
        ]
    )
    layout = Layout.of(here.config, 0)
    make_plan(here.config, layout, 1)
    *planned, missing = read_jsonl(layout.plan_samples)
    splitting.run_all()
    *records, failed = here.records()
    usages = [record["__usage"]["prompt_tokens"] for record in records]
    assert [line["prompt_tokens"] for line in planned] == usages
    assert len(set(usages)) == 5
    assert usages[4] > usages[0]  # its characters, not its tokens
    assert missing["error"] == {
        **failed["__error"],
        "message": failed["__error"]["message"].removeprefix("short: "),
    }
    # both questions share their media, and four patches become a token
    (job,) = here.summary()["jobs"]
    assert job["patches"] == sum(line["visual_tokens"] for line in planned) // 2 * 4
    tokens = job["prompt_tokens"], job["completion_tokens"]
    model = ModelFlops.of(json.loads((here.folder / "model/config.json").read_text()))
    assert job["flops"] == model.total(*tokens, job["patches"])
    assert job["card"] is here.summary()["throughput"]["share_of_peak"] is None
    # vLLM's own number for the largest item it takes
    limits = json.loads(layout.plan_report.read_text())["limits"]
    assert limits["max_item_tokens"] == _encoder_cache(here)


def _encoder_cache(here: Run) -> int:
    from video_pipeline.engine.vllm.engine import VllmEngine
    from vllm.v1.engine.input_processor import InputProcessor

    return InputProcessor(VllmEngine(here.config)._vllm_config).mm_encoder_cache_size
