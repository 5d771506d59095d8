"""The monitor of a running job: its statistics, its log lines, and its error rate."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from video_pipeline.gpu.devices import gpus_needed
from video_pipeline.infer.admission import Window
from video_pipeline.infer.shard import Shard
from video_pipeline.run.answers import describe_cut_off
from video_pipeline.run.pace import Pace, describe_progress
from video_pipeline.run.statistics import JobStatistics, State, StatisticsFile

logger = logging.getLogger(__name__)

TICK_SECONDS = 1.0
"""How often the statistics are brought up to date."""

WRITE_SECONDS = 5.0
"""How often they are written to their file."""


class JobMonitor:
    """Counts the samples of a job, keeps the file of its statistics, and logs its progress."""

    def __init__(self, shard: Shard, window: Window, num_processes: int, card: str | None) -> None:
        self._shard = shard
        self._window = window
        self._logged_cut_off = ""
        self.statistics = JobStatistics(
            shard.rank,
            num_processes,
            shard.task.name,
            model=shard.config.model_name,
            quantization=shard.config.vllm.arguments.get("quantization"),
            gpus=gpus_needed(shard.config),
            card=card,
            samples=len(shard),
            pending=len(shard.pending),
            finished=shard.error_rate.finished,
        )

    def tick(self) -> None:
        """Bring the statistics up to date."""
        rate = self._shard.error_rate
        self.statistics.finished, self.statistics.finished_failed = rate.finished, rate.failed
        self.statistics.tick(self._window.limits_now())

    async def keep_file(self, file: StatisticsFile) -> None:
        """Write the statistics while the job runs, until this is cancelled."""
        written = -math.inf
        while True:
            self.tick()
            if time.monotonic() - written >= WRITE_SECONDS:
                written = time.monotonic()
                await asyncio.to_thread(file.write, *self.statistics.snapshot())
            await asyncio.sleep(TICK_SECONDS)

    @contextmanager
    def written_when_stopped(self, file: StatisticsFile) -> Iterator[None]:
        """Write the statistics when SIGTERM ends this process within the block (Ctrl-C, scancel),
        and do nothing else: decode processes get the signal, too, and no sample is to blame."""

        def stop(signum: int, frame: FrameType | None) -> None:
            try:
                self.tick()
                file.write(*self.statistics.snapshot())
            finally:
                signal.signal(signum, earlier)
                os.kill(os.getpid(), signum)

        earlier = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, earlier)

    def end(self, file: StatisticsFile, state: State) -> None:
        """Write the statistics of a job that has given up its GPUs."""
        self.statistics.end(state)
        file.write(*self.statistics.snapshot())

    def count_finished(self, key: str, error: dict[str, str] | None) -> None:
        """Count the finished sample ``key``, with its ``__error`` if it failed; raises what
        :meth:`Shard.count_finished` raises."""
        if error is not None:
            self.statistics.count_error(key, error)
        # The window holds this sample too, unless it is in quarantine and was not read.
        self._shard.count_finished(error, under_way=max(0, self._window.held - 1))

    def log_progress(self) -> None:
        """Log the progress of the job, and how many answers were cut off when this changes."""
        rate, window = self._shard.error_rate, self._window
        pace = Pace.of(self.statistics.as_dict())
        logger.info(
            "rank %d: %s; %d being read, %d ready or in the engine (%.1f MB)",
            self._shard.rank,
            describe_progress(rate.finished, len(self._shard), rate.failed, pace),
            window.preparing,
            window.held,
            window.held_bytes / 1e6,
        )
        cut_off = describe_cut_off(self.statistics.truncated)
        if cut_off != self._logged_cut_off:
            self._logged_cut_off = cut_off
            logger.warning("rank %d: %s", self._shard.rank, cut_off)
