"""Benchmarks on a card: the engine alone, this project, and what people write.

``python -m benchmarks gpu`` measures them on a machine with one GPU and with what vLLM needs, in
ten minutes and without a network: models of real size with random weights, clips made here.
README.md says how it is done on a machine that has neither vLLM nor this project.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.report import Section

LIMIT = 560
"""Seconds for all steps; models and clips come before."""

STEPS = ("floor", "ours+plain+chat", "vss")

QUICK = {"BENCH_WINDOWS": "128", "BENCH_COUNTED": "144", "PLAIN_SECONDS": "12"}
"""Shorter than the run that the kit measures with more time."""


def run(work: Path) -> Section:
    """Measure on this machine's GPU."""
    from benchmarks.real_model import MODELS, write_real_model

    try:
        subprocess.run(["nvidia-smi", "-L"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            "python -m benchmarks gpu: this machine has no NVIDIA GPU (nvidia-smi finds none). For "
            "one without a network, see benchmarks/gpu/README.md"
        ) from None
    root = work / "gpu"
    os.environ.update({"BENCH_ROOT": str(root), "OUT": str(root / "out"), "HF_HUB_OFFLINE": "1"})
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    from benchmarks.gpu.common import CLIPS, CORES, results
    from benchmarks.gpu.section import section

    for name in MODELS:
        write_real_model(root / "models" / name, name)
    clips = [sys.executable, "-m", "benchmarks.gpu.make_clips", str(CLIPS), str(CORES)]
    subprocess.run(clips, check=True, env={**os.environ, "CLIPS_1080": "0"})
    drive = [sys.executable, "-m", "benchmarks.gpu.drive", "--again", "--limit", str(LIMIT)]
    subprocess.run([*drive, *STEPS], check=True)
    return section(results())
