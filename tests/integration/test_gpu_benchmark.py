"""The benchmark for one card, up to the card: its steps run on the CPU, with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import yaml
from helpers import PROJECT
from video_pipeline.testing.clips import write_clip
from video_pipeline.testing.tiny_model import write_tiny_model

STEPS = ("floor", "ours", "plain")


def test_the_steps_run_up_to_the_card(tmp_path, forked_engine):
    demo = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text())
    clips = tmp_path / "clips"
    for index in range(2):
        write_clip(clips / f"720p-10s-{index:02}.mp4", seed=index, seconds=2.0)
    (clips / "720p.done").touch()
    model = write_tiny_model(tmp_path / "model")
    # What BASE sets and a CPU does not have goes.
    vllm = {**demo["vllm"], "load_format": None, "gpu_memory_utilization": None}
    environment = {
        "BENCH_ROOT": str(tmp_path),
        "BENCH_CLIPS": str(clips),
        "BENCH_MODEL": str(model),
        "BENCH_VISION": json.dumps(demo["vision"]),
        "BENCH_VLLM": json.dumps({**vllm, "model": str(model)}),
        "BENCH_MEAN_TOKENS": "4",
        "BENCH_IN_FLIGHT": "2",
        "BENCH_WINDOWS": "2",
        "BENCH_RAMP": "1",
        "BENCH_COUNTED": "8",
        "BENCH_MEASURE": "150",
        # More than the tiny model answers before the statistics, every 5 s, say that it has all
        # that it may hold. The run ends 8 answers later.
        "N_OURS": "2000",
        "PLAIN": "2",
        "PLAIN_WORKERS": "1",
        "PLAIN_SECONDS": "5",
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'workflow' / 'scripts'}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.drive", "--limit", "800", *STEPS],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    logs = (tmp_path / "runs" / "logs.txt").read_text()
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    for step in STEPS:
        assert results[step].get("complete"), f"{step}: {results[step]}\n{logs}"
    for step in ("floor", "ours"):
        assert results[step]["steady"]["answers"] == 8
        assert f"\n{step}" in done.stdout  # a row of the table
