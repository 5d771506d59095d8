"""A model that the dataset cannot serve, in the whole workflow."""

from __future__ import annotations

import json

from helpers import Run


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
