"""Infer: one chunk on one GPU, from pending samples to the rank file.

Samples are read and prepared by decode processes and submitted to the engine the moment they are
ready, in any order; answers go to the journal as they come. When the chunk is complete, its rank
file is written from the journal, in input order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from video_pipeline import gpus
from video_pipeline.config import Config
from video_pipeline.data.samples import Chunk
from video_pipeline.data.workers import DecodePool, Prepared, SampleError, WorkerSpec
from video_pipeline.engine import create_engine
from video_pipeline.engine.base import Engine, RequestRefused
from video_pipeline.errors import TaskError
from video_pipeline.files import replacing
from video_pipeline.journal import JournalIndex, JournalReader, JournalWriter, read_index
from video_pipeline.layout import Layout
from video_pipeline.locks import waiting_lock
from video_pipeline.plugins import load_plugins
from video_pipeline.processes import job_processes
from video_pipeline.records import ErrorRate, Records
from video_pipeline.samples import task_sample
from video_pipeline.sharding import TWICE, Manifest, check_deterministic
from video_pipeline.statistics import JobStatistics
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import get_task

logger = logging.getLogger(__name__)

SYNC_SECONDS = 5.0
"""How often the journal is flushed to the disk."""

PARSED_AT_ONCE = 20
"""How many answers are parsed as they come, to find a task that breaks its contract early."""

PROGRESS_SECONDS = 60.0
"""How often a line of progress is logged."""


def infer(config: Config, layout: Layout, rank: int, threads: int) -> None:
    """Infer what is pending in the chunk of ``rank`` and write its rank file.

    ``threads`` is the number of cores given to the job. A second job of the same rank waits for
    the first and infers what that left. With nothing pending no GPU is taken and no model loaded.

    Raises :class:`UserError` where the user's input, code or settings are at fault, also if more
    than ``run.max_error_rate`` of the samples failed.
    """
    load_plugins(config.run.plugins)
    task = get_task(config.run.task)(dict(config.task_params))
    with waiting_lock(layout.lock(rank), logger):
        manifest = Manifest.read(layout.manifest)
        shard = Shard(config, layout, rank, manifest, task)
        if len(shard.pending):
            logger.info("rank %d: %d of %d samples pending", rank, len(shard.pending), len(shard))
            with gpus.lease(config.vllm.gpus_per_job), job_processes() as folder:
                run = InferenceRun(shard, folder, _num_workers(config, threads))
                _run(run.run())
        else:
            logger.info("rank %d: all %d samples are done", rank, len(shard))
        shard.publish()


def _num_workers(config: Config, threads: int) -> int:
    if config.data.num_workers != "auto":
        return config.data.num_workers
    return max(1, threads - 1)


def _run(main: Awaitable[None]) -> None:
    """``asyncio.run``, with the one failure of a task group instead of the group."""
    try:
        asyncio.run(main)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class Shard:
    """One rank's chunk and what the journal says about it.

    Attributes:
        config: The configuration.
        task: The task.
        chunk: The entries of the chunk.
        rank: The rank.
        pending: Positions in the chunk that are still to be inferred, in input order.
        error_rate: Failures among the finished samples.
        statistics_path: File for the job's statistics.
    """

    def __init__(
        self, config: Config, layout: Layout, rank: int, manifest: Manifest, task: Task
    ) -> None:
        self.config = config
        self.task = task
        self.rank = rank
        self.chunk = Chunk(layout.chunk(rank))
        self.statistics_path = layout.statistics(rank)
        self._rank_file = layout.rank_file(rank)
        self._journal = Path(manifest.journal)
        self._attempts = f"attempt.{manifest.split_id}.rank{rank}."
        self.error_rate = ErrorRate(config.run.max_error_rate)
        self.pending = array("Q")
        index = self._index()
        for position, entry in enumerate(self.chunk):
            done = index.find(entry.key, "", entry.request, entry.done)
            if done is None:
                self.pending.append(position)
            else:
                self.error_rate.finished += 1
                self.error_rate.failed += done.is_error

    def __len__(self) -> int:
        return len(self.chunk)

    def _index(self) -> JournalIndex:
        return read_index(self._journal, self._attempts)

    def open_journal(self) -> JournalWriter:
        """A new journal file for this attempt."""
        return JournalWriter(self._journal, self._attempts.rstrip("."))

    def check_requests(self) -> None:
        """Build the messages of the first pending samples again, in this process.

        Raises :class:`TaskError` if they differ from those that split built.
        """
        for position in self.pending[:TWICE]:
            entry = self.chunk[position]
            sample = task_sample(entry.key, entry.raw, self.config)
            video = entry.raw[self.config.data.video_field]
            check_deterministic(self.task, sample, video, entry.request)

    def try_parse(self, position: int, output_text: str) -> None:
        """Parse one answer. Raises :class:`TaskError` if the task breaks its contract; what else
        goes wrong becomes the sample's error record later."""
        entry = self.chunk[position]
        sample = task_sample(entry.key, entry.raw, self.config)
        try:
            self.task.parsed(output_text, sample)
        except TaskError:
            raise
        except Exception as error:
            logger.warning("sample %s: parse failed: %s: %s", entry.key, type(error).__name__, error)

    def reopen_read_failures(self) -> int:
        """Open the chunk's own failures to read again; returns how many there were."""
        index = self._index()
        count = 0
        with (
            JournalReader(self._journal) as reader,
            JournalWriter(self._journal, "reopen") as journal,
        ):
            for entry in self.chunk:
                done = index.find(entry.key, "", entry.request, entry.done)
                if done is None or not done.is_error:
                    continue
                if reader.read(done)["__error"]["stage"] in ("read", "timeout"):
                    journal.reopen(entry.key, "", entry.request, done.file)
                    count += 1
        return count

    def publish(self) -> None:
        """Write the rank file: the journal's records, parsed, in the order of the chunk.

        Raises :class:`UserError` if more than ``run.max_error_rate`` of them are errors.
        """
        index = self._index()
        records = Records(self.config, self.task)
        rate = ErrorRate(self.config.run.max_error_rate)
        with JournalReader(self._journal) as reader, replacing(self._rank_file) as stream:
            for entry in self.chunk:
                done = index.find(entry.key, "", entry.request, entry.done)
                if done is None:
                    raise RuntimeError(f"sample {entry.key} has no record, though the job is over")
                record = records.build(entry, reader.read(done))
                rate.count(failed=record["__status"] == "error")
                stream.write(orjson.dumps(record) + b"\n")
            rate.check(f"rank {self.rank}")


@dataclass
class Window:
    """Bounds what is held at once: samples being prepared, ready, and submitted.

    Attributes:
        max_bytes: Bound on ready plus submitted samples.
        max_samples: Bound on their number.
        max_preparing: Bound on samples in the decode processes and their queue.
    """

    max_bytes: float
    max_samples: int
    max_preparing: int

    def __post_init__(self) -> None:
        self.preparing = self.held = self.held_bytes = 0
        self._largest = 0
        self._changed = asyncio.Condition()

    async def admit(self) -> None:
        """Wait until one more sample may be prepared."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self.preparing += 1

    def _has_room(self) -> bool:
        if self.preparing + self.held == 0:
            return True  # one sample must always be possible, however large
        expected = self.held_bytes + (self.preparing + 1) * self._largest
        return (
            self.preparing < self.max_preparing
            and self.held < self.max_samples
            and expected <= self.max_bytes
        )

    async def prepared(self, num_bytes: int) -> None:
        """A sample of ``num_bytes`` is ready (0 if it failed and holds nothing)."""
        async with self._changed:
            self.preparing -= 1
            self.held += 1
            self.held_bytes += num_bytes
            self._largest = max(self._largest, num_bytes)
            self._changed.notify()

    async def release(self, num_bytes: int) -> None:
        """A sample of ``num_bytes`` is finished."""
        async with self._changed:
            self.held -= 1
            self.held_bytes -= num_bytes
            self._changed.notify()


class InferenceRun:
    """Everything that happens while the model is loaded."""

    def __init__(self, shard: Shard, folder: Path, num_workers: int) -> None:
        self._shard = shard
        self._folder = folder
        self._num_workers = num_workers
        config = shard.config
        self._window = Window(
            max_bytes=config.data.max_ready_gb * 1e9,
            max_samples=2 * config.run.max_in_flight,
            max_preparing=2 * num_workers,
        )
        self._submit = asyncio.Semaphore(config.run.max_in_flight)
        self._statistics = JobStatistics(shard.rank, num_workers)

    async def run(self) -> None:
        """Infer all pending samples of the shard."""
        shard = self._shard
        shard.check_requests()
        shard.error_rate.check(f"rank {shard.rank}")
        engine = create_engine(shard.config)
        spec = WorkerSpec(
            config=shard.config,
            chunk=Path(shard.chunk.path),
            model=engine.dataset_model,
            preparer=engine.preparer(),
            folder=self._folder,
        )
        pool = DecodePool(spec, self._num_workers, shard.config.data.sample_timeout_s)
        try:
            await engine.start()
            with shard.open_journal() as journal:
                await self._infer_all(engine, pool, journal)
        finally:
            pool.stop()
            engine.stop()
            self._statistics.append_to(shard.statistics_path)

    async def _infer_all(self, engine: Engine, pool: DecodePool, journal: JournalWriter) -> None:
        self._statistics.start()
        async with asyncio.TaskGroup() as group:
            sync = group.create_task(_every(SYNC_SECONDS, journal.sync))
            progress = group.create_task(_every(PROGRESS_SECONDS, self._log_progress))
            async with asyncio.TaskGroup() as samples:
                for position in self._shard.pending:
                    await self._window.admit()
                    samples.create_task(self._infer_one(position, engine, pool, journal))
            sync.cancel()
            progress.cancel()
        self._statistics.finish()
        self._log_progress()

    async def _infer_one(
        self, position: int, engine: Engine, pool: DecodePool, journal: JournalWriter
    ) -> None:
        entry = self._shard.chunk[position]
        key, request = entry.key, entry.request
        del entry
        prepared: Prepared | None = None
        try:
            try:
                prepared = await pool.prepare(position)
            finally:
                await self._window.prepared(prepared.num_bytes if prepared else 0)
            self._statistics.decode_seconds += prepared.seconds
            async with self._submit:
                with self._statistics.engine_busy():
                    answer = await engine.generate(key, prepared.request)
        except SampleError as error:
            self._fail(journal, key, request, error.as_record())
        except RequestRefused as error:
            record = {"stage": "generate", "type": error.type, "message": str(error)}
            self._fail(journal, key, request, record)
        else:
            journal.answer(key, "", request, answer.output_text, answer.usage)
            if self._statistics.inferred < PARSED_AT_ONCE:
                self._shard.try_parse(position, answer.output_text)
            self._statistics.count(answer)
            self._shard.error_rate.count(failed=False)
        finally:
            await self._window.release(prepared.num_bytes if prepared else 0)

    def _fail(
        self, journal: JournalWriter, key: str, request: str, error: dict[str, Any]
    ) -> None:
        journal.error(key, "", request, error)
        logger.warning("sample %s failed: %s", key, error)
        self._statistics.failed += 1
        rate = self._shard.error_rate
        rate.count(failed=True)
        if rate.exceeded:
            reopened = self._shard.reopen_read_failures()
            rate.check(
                f"rank {self._shard.rank}",
                f"its {reopened} failures to read are open again for the next run",
            )

    def _log_progress(self) -> None:
        rate, window = self._shard.error_rate, self._window
        logger.info(
            "rank %d: %d of %d done, %d failed; %d being read, %d ready or in the engine (%.1f MB)",
            self._shard.rank,
            rate.finished,
            len(self._shard),
            rate.failed,
            window.preparing,
            window.held,
            window.held_bytes / 1e6,
        )


async def _every(seconds: float, action: Any) -> None:
    """Call ``action`` in a thread every ``seconds``, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(action)
