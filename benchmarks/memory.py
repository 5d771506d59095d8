"""Memory of an inference job with few and with many samples (simulated engine).

Two figures. *With tensors*: each sample holds 1 MB, decoding is faster than the engine, and the
window of ready samples (``data.max_ready_gb``) is full in both runs. *Without media*: the memory
that grows is what the job keeps of each sample.

The main process is judged by its peak resident size as the kernel keeps it (``VmHWM``), read until
its end. The whole tree is sampled: the proportional share of all processes, without shared memory,
plus what is in ``/dev/shm``.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.jobs import PLUGINS, Job
from benchmarks.report import Figure, Section

FEW, MANY = 500, 10_000
HUGE = int(os.environ.get("BENCH_HUGE", 1_000_000))
TENSOR_BYTES = 1_000_000
MAX_READY_GB = 0.2
BAR_RATIO, BAR_GROWTH = 1.1, 200

TREE_SECONDS = 0.5


@dataclass
class Peaks:
    """Peaks of one job in bytes, and how fast it was."""

    main: int = 0
    tree: int = 0
    samples_per_second: float = 0.0


class Watch:
    """Reads the peaks of a job while it runs."""

    def __init__(self) -> None:
        self.peaks = Peaks()
        self._shared = _shared_memory()
        self._next = 0.0

    def __call__(self, process: subprocess.Popen) -> None:
        try:
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as stream:
                for line in stream:
                    if line.startswith("VmHWM:"):
                        self.peaks.main = max(self.peaks.main, int(line.split()[1]) * 1024)
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + TREE_SECONDS
                self.peaks.tree = max(self.peaks.tree, self._tree(process.pid))
        except (OSError, psutil.Error):
            return

    def _tree(self, pid: int) -> int:
        root = psutil.Process(pid)
        total = _shared_memory() - self._shared
        for process in [root, *root.children(recursive=True)]:
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8")
            except OSError:
                continue
            for line in text.splitlines():
                if line.startswith(("Pss_Anon:", "Pss_File:")):
                    total += int(line.split()[1]) * 1024
        return total


def _shared_memory() -> int:
    usage = os.statvfs("/dev/shm")
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize


def run(work: Path) -> Section:
    """Measure the jobs with tensors, then those without media."""
    few, many = (_peaks(work, count, TENSOR_BYTES) for count in (FEW, MANY))
    base, huge = (_peaks(work, count, 0) for count in (MANY, HUGE))
    growth = (huge.main - base.main) / (HUGE - MANY)
    figures = [
        Figure.at_most(
            f"peak memory of the main process, {MANY:,} samples / {FEW}",
            many.main / few.main,
            BAR_RATIO,
        ),
        Figure.at_most(
            f"the same of all its processes, {MANY:,} samples / {FEW}",
            many.tree / few.tree,
            BAR_RATIO,
        ),
        Figure(
            f"growth of the main process from {MANY:,} to {HUGE:,} samples",
            f"under {BAR_GROWTH} bytes a sample",
            f"{growth:.0f} bytes a sample",
            growth < BAR_GROWTH,
        ),
    ]
    rows = [
        (f"{FEW} with 1 MB", few),
        (f"{MANY:,} with 1 MB", many),
        (f"{MANY:,} without media", base),
        (f"{HUGE:,} without media", huge),
    ]
    details = [["samples", "main process, MB", "all processes, MB", "samples/s"]] + [
        [name, f"{p.main / 1e6:.0f}", f"{p.tree / 1e6:.0f}", f"{p.samples_per_second:.0f}"]
        for name, p in rows
    ]
    how = (
        "Peak resident size of the `infer.py` process (`VmHWM`), simulated engine, 2 decode "
        f"processes. With 1 MB a sample, `max_ready_gb: {MAX_READY_GB:g}` and an "
        "engine slower than decoding, so that the window is full in both runs; the simulated "
        "engine maps the samples and does not touch their pages. *All processes*: proportional "
        "set sizes without shared memory, plus `/dev/shm`, sampled twice a second. *Growth*: the "
        "difference of the peaks over the difference in samples, no media, writing of the rank "
        "file included."
    )
    return Section("Memory", figures, how, _LIMITS, details)


_LIMITS = (
    "What the job keeps of a sample are its place in the chunk, its place in the journal, and the "
    "identity of what was asked; the largest moment is the end, when the journal is read back to "
    "write the rank file."
)


def _peaks(work: Path, count: int, size: int) -> Peaks:
    simulated = {"output_tokens": 16, "concurrency": 64}
    if size:
        simulated["seconds_per_output_token"] = 64 / 200 / 16  # 200 samples a second
    job = Job(
        work / "memory",
        ({"id": number, "path": "none"} for number in range(count)),
        {
            "data": {"num_workers": 2, "max_ready_gb": MAX_READY_GB},
            "run": {
                "engine": "simulated",
                "task": "hold",
                "plugins": [str(PLUGINS / "tensors.py")],
                "simulated": simulated,
            },
            "task_params": {"bytes": size},
        },
    )
    watch = Watch()
    statistics = job.infer(3, watch)
    watch.peaks.samples_per_second = statistics["inferred"] / statistics["seconds"]
    return watch.peaks
