"""The plain loop with a simulated engine: DataLoader, a blocking call for each batch.

Run by :mod:`benchmarks.simulated` as a process of its own.
"""

from __future__ import annotations

import time

from benchmarks.jobs import hand_back, settings_of_this_process
from benchmarks.plugins.sleeping import reading_time


class Sleeps:
    """A map-style dataset that sleeps as the plugin's does."""

    def __init__(self, count: int, seconds: float, spread: float) -> None:
        self._count, self._seconds, self._spread = count, seconds, spread

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> str:
        time.sleep(reading_time(str(i), self._seconds, self._spread))
        return "x" * 40


def main() -> None:
    from torch.utils.data import DataLoader

    settings = settings_of_this_process()
    loader = DataLoader(
        Sleeps(settings["samples"], settings["read_seconds"], settings["spread"]),
        batch_size=settings["batch_size"],
        num_workers=settings["num_workers"],
        collate_fn=list,
        multiprocessing_context="spawn",
    )
    started, busy = None, 0.0
    for batch in loader:
        begin = time.monotonic()
        started = begin if started is None else started
        time.sleep(len(batch) * settings["engine_seconds"])
        end = time.monotonic()
        busy += end - begin
    total = end - started
    rates = {"rate": settings["samples"] / total, "demand": settings["samples"] / busy}
    hand_back({"busy": busy / total, **rates})


if __name__ == "__main__":
    main()
