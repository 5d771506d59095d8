"""The quickstart of the README, with real vLLM. ``test_pages.py`` runs the other commands."""

from __future__ import annotations

import json
import re

import yaml
from helpers import PROJECT
from pages import blocks, clone, run_in
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model


def test_the_quickstart_makes_captions(tmp_path, monkeypatch):
    """With a tiny model under the name of the README's, and settings for a CPU as the defaults."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    clone(tmp_path)
    quickstart = [line for line in blocks("bash", "README.md")[0].text.splitlines() if line]
    assert len(quickstart) <= 3
    command = quickstart[-1]
    name = re.search(r"model=(\S+)", command)[1]
    write_tiny_model(tmp_path / name)
    for clip in ("a", "b"):
        write_clip(tmp_path / f"videos/{clip}.mp4", width=64, height=64, fps=4, seconds=3)
    defaults = yaml.safe_load((tmp_path / "config/config.yaml").read_text())
    for section, keys in yaml.safe_load((PROJECT / "config/demo.yaml").read_text()).items():
        defaults[section] |= {key: keys[key] for key in keys if key != "model"}
    defaults["report"]["samples"] = 0  # no video is read again
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(defaults))
    run_in(tmp_path, command)
    lines = (tmp_path / "results/output.describe.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["input"] for record in records] == [{"path": "a.mp4"}, {"path": "b.mp4"}]
    assert all(record["__model"] == name and record["description"] for record in records)
    assert (tmp_path / "results/output.describe.report.html").exists()
