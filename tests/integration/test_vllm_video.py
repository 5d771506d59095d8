"""The dataset ``video`` with real vLLM on the CPU: plan, run and answers, against transformers."""

from __future__ import annotations

import json
import re

import av
import numpy as np
import pytest
import torch
import transformers
import yaml
from helpers import PROJECT, Run, read_jsonl
from transformers.video_utils import VideoMetadata
from video_pipeline.tasks.describe import Describe
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import FAMILIES, write_tiny_model

DEMO = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text(encoding="utf-8"))
TOKENS = 12
CLIPS = {
    "wide.mp4": {"width": 320, "height": 128, "fps": 24, "seconds": 2.0},
    "small.mp4": {"width": 64, "height": 96, "fps": 10, "seconds": 4.0},
}


def reference(model, path, *, tokens: int) -> tuple[int, str]:
    """Tokens of the prompt, and the answer, as transformers has them: all frames of the clip, and
    the sampling of the model's own processor."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        fps = float(container.streams.video[0].average_rate)
    processor = transformers.AutoProcessor.from_pretrained(model)
    system, user = Describe.system, Describe.default_prompt
    content = [{"type": "video"}, {"type": "text", "text": user}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": content},
    ]
    inputs = processor(
        text=[processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
        videos=[torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)],
        video_metadata=[
            VideoMetadata(total_num_frames=len(frames), fps=fps, duration=len(frames) / fps)
        ],
        do_sample_frames=True,
        fps=2.0,
        return_tensors="pt",
    )
    model = transformers.AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    said = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    length = inputs["input_ids"].shape[1]
    return length, processor.tokenizer.decode(said[0, length:], skip_special_tokens=True)


@pytest.mark.parametrize("family", sorted({"qwen2_5_vl", "qwen3_vl", "glm4v"} & set(FAMILIES)))
def test_answers_are_those_of_transformers(run: Run, family, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = write_tiny_model(run.folder / "model", family)
    for number, (name, arguments) in enumerate(CLIPS.items()):
        write_clip(run.folder / name, seed=number, **arguments)
    run.settings = {section: dict(keys) for section, keys in DEMO.items()}
    run.configure(
        data={
            "input_jsonl": "samples.jsonl",
            "output_jsonl": "results/out.jsonl",
            "id_field": "id",
            "num_shards": 1,
        },
        vllm={"model": "model", "max_model_len": 8192},
        vision={"fps": 2.0, "max_frames": 32, "max_pixels": 1 << 20},
        sampling={"max_tokens": TOKENS},
        run={"task": "describe", "dataset": "video"},
        report={"samples": 2},
    )
    run.write_samples(
        [{"id": name, "path": name} for name in CLIPS] + [{"id": "gone", "path": "gone.mp4"}]
    )
    run.snakemake("plan")
    run.snakemake()
    *records, gone = run.records()
    for record in records:
        length, text = reference(model, run.folder / record["__key"], tokens=TOKENS)
        assert record["__status"] == "ok"
        assert record["__usage"]["prompt_tokens"] == length
        assert record["output_text"] == text
    assert gone["__error"]["stage"] == "read"
    lines = read_jsonl(run.folder / "results" / "out.plan.jsonl")
    planned = {line["key"]: line.get("prompt_tokens") for line in lines if line["readable"]}
    assert planned == {r["__key"]: r["__usage"]["prompt_tokens"] for r in records}

    out = run.module("preview", "--no-engine", "--video", "small.mp4")
    assert Describe.default_prompt in out
    tokens = planned["small.mp4"]
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
