"""A family beyond the Qwen-VL line in the whole workflow, with real vLLM on the CPU: plan, run and
preview of windows, against transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from family_reference import Clip, FamilyReference
from helpers import PROJECT, Run, read_jsonl
from video_pipeline.tasks.describe import Describe
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model

DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))
TOKENS = 12
CLIPS = {
    "wide.mp4": {"width": 160, "height": 64, "fps": 24, "seconds": 2.0},
    "small.mp4": {"width": 64, "height": 96, "fps": 10, "seconds": 4.0},
}


def window(reference: FamilyReference, path: Path, start: float, end: float) -> Clip:
    """The frames that the family samples from a part of a video, with their times in the video."""
    clip = Clip.of(path)
    fps = clip.told["fps"]
    first, last = round(start * fps), round(end * fps)
    told = {"fps": fps, "total_num_frames": last - first, "duration": end - start}
    part = Clip(clip.frames[first:last], told)
    numbers = reference.sampled(part)
    indices = [first + number for number in numbers]
    return Clip(part.frames[numbers], {**told, "frames_indices": indices})


def test_windows_of_another_family(run: Run, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = write_tiny_model(run.folder / "model", "glm4v")
    for number, (name, arguments) in enumerate(CLIPS.items()):
        write_clip(run.folder / name, seed=number, **arguments)
    run.settings = {section: dict(keys) for section, keys in DEMO.items()}
    run.configure(
        data={"input_jsonl": "samples.jsonl", "output_jsonl": "results/out.jsonl"},
        vllm={"model": "model", "max_model_len": 8192},
        vision={"fps": 1.0, "max_frames": 32, "max_pixels": 1 << 20},
        sampling={"max_tokens": TOKENS},
        run={"task": "describe", "dataset": "clips"},
        task_params={"clip_seconds": 1},
        report={"samples": 2},
    )
    run.configure(data={"id_field": "id", "num_shards": 1})
    run.write_samples(
        [{"id": name, "path": name} for name in CLIPS] + [{"id": "gone", "path": "gone.mp4"}]
    )
    run.snakemake("plan")
    run.snakemake()
    *records, gone = run.records()
    reference = FamilyReference(model)
    assert len(records) == 6
    for record in records:
        of = record["input"]
        clip = window(reference, run.folder / of["path"], of["video_start"], of["video_end"])
        inputs = reference.inputs(clip)
        assert record["__status"] == "ok"
        assert record["__usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
        assert record["output_text"] == reference.answer(inputs, TOKENS)
    assert gone["__error"]["stage"] == "read"
    videos = read_jsonl(run.folder / "results" / "out.videos.jsonl")
    assert [len(video["clips"]) for video in videos] == [2, 4, 1]
    lines = read_jsonl(run.folder / "results" / "out.plan.jsonl")
    planned = {line["key"]: line.get("prompt_tokens") for line in lines if line["readable"]}
    assert planned == {r["__key"]: r["__usage"]["prompt_tokens"] for r in records}
    # The family has a rate of its own.
    assert "vision.fps" in run.log("split")
    assert "without effect" in run.log("split")

    out = run.module("preview", "--no-engine", "--video", "small.mp4")
    assert Describe.default_prompt in out
    tokens = records[2]["__usage"]["prompt_tokens"]
    assert re.search(rf"tokens: {tokens} in the prompt, \d+ of them visual", out)


def test_a_model_that_is_refused_uses_no_gpu(run: Run):
    """Before infer: split says it, with the way out."""
    (run.folder / "model").mkdir()
    (run.folder / "model" / "config.json").write_text(json.dumps({"model_type": "glm4v"}))
    run.configure(run={"task": "describe", "dataset": "qwen_video", "engine": "vllm"})
    run.configure(vllm={"model": "model"})
    run.write_samples([{"id": 1, "path": "a.mp4"}])
    out = run.script("split.py", "--num-shards", "1", succeeds=False)
    said = out.splitlines()[-1]
    assert "vllm.model: model is no Qwen-VL model" in said
    assert "use run.dataset: video" in said
    assert "Traceback" not in out
