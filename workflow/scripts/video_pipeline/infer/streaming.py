"""The loop of an inference job: pending samples, decode processes, engine, journal.

Remote videos are fetched ahead. Decode processes read and prepare the samples. Each sample goes to
the engine as soon as it is ready, in any order, and each answer goes to the journal at once. The
engine is never drained, and the bytes of the samples that are held at once are bounded.

:mod:`video_pipeline.infer.plain_loop` is its specification.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import Prepared
from video_pipeline.engine import modules_of
from video_pipeline.engine.base import Answer, Constraints, Engine, EngineDead
from video_pipeline.gpu.peaks import peak_flops
from video_pipeline.infer.admission import Window
from video_pipeline.infer.asking import Outcome, ask, fail_all, first_error, request_name
from video_pipeline.infer.job_monitor import JobMonitor
from video_pipeline.infer.prefetch import Copy, Prefetcher
from video_pipeline.infer.quarantine import Quarantine
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.statistics import State, StatisticsFile
from video_pipeline.storage.fetched import NOTHING

if TYPE_CHECKING:
    from video_pipeline.infer.shard import Shard
    from video_pipeline.run.chunks import Question

logger = logging.getLogger(__name__)

SYNC_SECONDS = 5.0
"""How often the journal is flushed to the disk."""

PROGRESS_SECONDS = 60.0
"""How often the job logs its progress."""

ENGINE_LOOK_SECONDS = 1.0
"""How often the loop checks that the engine is not stuck."""

PARSED_AT_ONCE = 20
"""How many answers are parsed as they come, to find a task that breaks its contract early."""


def run_stream(shard: Shard, folder: Path, num_workers: int, card: str | None) -> None:
    """Infer all pending samples of ``shard``.

    Args:
        folder: The job's folder of shared memory.
        num_workers: How many decode processes there may be.
        card: Name of the job's GPUs; None if it is not known.

    Raises:
        UserError: The user's code or settings are at fault, or more than ``run.max_error_rate`` of
            the samples failed.
        EngineDead: The engine is gone or stuck.
    """
    try:
        asyncio.run(_run(shard, folder, num_workers, card))
    except BaseExceptionGroup as group:
        # The first failure cancels the other tasks of its group, so it is the message.
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, EngineDead):
            shard.check_engine(error)
            raise EngineDead(
                f"rank {shard.rank}: the engine died: {error}. The next attempt tries the samples "
                "that were in it last and with care: Snakemake starts it (retries), or run the "
                "same command again"
            ) from None
        raise error from None


async def _run(shard: Shard, folder: Path, num_workers: int, card: str | None) -> None:
    config, num_processes = shard.config, min(num_workers, len(shard.pending))
    window = Window(
        # Shared memory may be small, for example in containers.
        max_bytes=min(config.data.max_ready_gb * 1e9, 0.8 * shutil.disk_usage(folder).free),
        max_samples=2 * config.run.max_in_flight,
        max_preparing=num_processes,
    )
    monitor = JobMonitor(shard, window, num_processes, card)
    prefetcher = shard.create_prefetcher(num_processes)
    server = ForkServer(modules_of(config))  # It imports while the engine is configured.
    try:
        engine = shard.create_engine()
        monitor.statistics.count_flops(engine.flops, peak_flops(card, engine.precision))
        spec = shard.worker_spec(engine, folder)
        journal = shard.open_journal()
        file = StatisticsFile(journal.path)
        pool = DecodePool(server, spec, num_processes, config.data.sample_timeout_s)
        state: State = "failed"
        try:
            with journal, monitor.written_when_stopped(file):
                stream = Stream(shard, folder, engine, pool, prefetcher, journal, window, monitor)
                await stream.run(file)
            state = "done"
        finally:
            monitor.tick()
            pool.stop()
            prefetcher.stop()
            engine.stop()
            monitor.end(file, state)
    finally:
        server.stop()


@dataclass
class Stream:
    """Infers the pending samples of a shard, many at the same time."""

    shard: Shard
    folder: Path
    engine: Engine
    pool: DecodePool
    prefetcher: Prefetcher
    journal: JournalWriter
    window: Window
    monitor: JobMonitor

    def __post_init__(self) -> None:
        self._statistics = self.monitor.statistics
        self._quarantine = Quarantine(self.shard.deaths)
        self._submit = asyncio.Semaphore(self.shard.config.run.max_in_flight)
        self._engine_ready = asyncio.Event()
        self.window.engine_is_saturated = self._is_saturated
        self.prefetcher.waiting = self.window.waiting_for_files

    async def run(self, file: StatisticsFile) -> None:
        """Start the engine and infer all pending samples; write the statistics to ``file``."""
        shard, window = self.shard, self.window
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(_every(SYNC_SECONDS, self.journal.sync)),
                group.create_task(_every(PROGRESS_SECONDS, self.monitor.log_progress)),
                group.create_task(self.monitor.keep_file(file)),
                group.create_task(self._watch_engine()),
            ]
            for position, error in shard.quarantined.items():
                self._fail(shard.questions(position), error)
            start = group.create_task(self._start())
            rounds = self._quarantine.rounds(shard.pending, shard.config.run.max_in_flight)
            for positions, max_in_flight in rounds:
                self._submit = asyncio.Semaphore(max_in_flight)
                if self._quarantine.is_last_round:
                    window.max_preparing = 1
                async with asyncio.TaskGroup() as samples:
                    async for position, copy in self.prefetcher.ready(positions):
                        await window.admit()
                        samples.create_task(self._infer(position, copy))
                    window.all_admitted()
            await start
            for helper in helpers:
                helper.cancel()
        self.monitor.tick()
        self.monitor.log_progress()

    def _is_saturated(self) -> bool:
        return self._submit.locked() or self.engine.is_saturated()

    async def _start(self) -> None:
        """Load the model; meanwhile the decode processes start and prepare the first samples."""
        await self.engine.start(self.folder)
        self._engine_ready.set()

    async def _watch_engine(self) -> None:
        """Raise :class:`EngineDead` if the engine has requests and stands still."""
        timeout_s = self.shard.config.run.engine_timeout_s
        steps, since = self.engine.steps, time.monotonic()
        while True:
            await asyncio.sleep(min(ENGINE_LOOK_SECONDS, timeout_s / 2))
            if self._quarantine.engine_is_empty or self.engine.steps != steps:
                steps, since = self.engine.steps, time.monotonic()
            elif time.monotonic() - since > timeout_s:
                death = EngineDead(f"no sign of life for run.engine_timeout_s: {timeout_s:g} s")
                self._quarantine.note_death(self.journal, str(death))
                raise death

    async def _infer(self, position: int, copy: Copy | None) -> None:
        """Prepare one sample, and ask all questions about it."""
        questions = self.shard.questions(position)
        prepared: Prepared | None = None
        try:
            try:
                parts = [question.part for question in questions]
                files = copy.files if copy else NOTHING
                prepared = await self.pool.prepare(position, parts, files)
            finally:
                self.prefetcher.release(copy, used=prepared.used_files if prepared else None)
                await self.window.prepared(prepared.num_bytes if prepared else 0)
            self._statistics.count_prepared(prepared)
            await self._engine_ready.wait()
            # In a group no task writes to the journal after another one has failed.
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._ask(position, question, prepared))
                    for question in questions
                ]
        except SampleError as error:
            key = questions[0].key
            if error.stage == "crash" and self._quarantine.try_again(position):
                logger.warning("sample %s: %s; it is tried once more, alone", key, error)
            else:
                self._fail(questions, error.as_record())
        else:
            outcomes = [task.result() for task in tasks]
            if any(outcome.answer for outcome in outcomes):
                cut_off = next((o.cut_off for o in outcomes if o.cut_off), None)
                patches = self.engine.patches(prepared.requests.values())
                self._statistics.count_sample(prepared, cut_off, patches)
            self.monitor.count_finished(questions[0].key, first_error(outcomes))
        finally:
            await self.window.release(prepared.num_bytes if prepared else 0)

    async def _ask(self, position: int, question: Question, prepared: Prepared) -> Outcome:
        """Ask one question, write the answer to the journal, and count it."""
        outcome = await ask(self.shard, position, question, prepared, self.journal, self._generate)
        if outcome.answer is not None:
            self._statistics.count(outcome.answer)
            if outcome.error is None and self._statistics.inferred < PARSED_AT_ONCE:
                parsed = self.shard.try_parse(position, question.part, outcome.answer)
                self._statistics.unparsed += not parsed
        return outcome

    async def _generate(self, question: Question, request: Any, constraints: Constraints) -> Answer:
        """Let the engine answer, as soon as it may get one more request."""
        name = request_name(question)
        async with self._submit:
            self.window.start_clock()
            with (
                self._quarantine.in_engine(name, question, self.journal),
                self._statistics.engine_busy(),
            ):
                return await self.engine.generate(name, request, constraints)

    def _fail(self, questions: list[Question], error: dict[str, str]) -> None:
        """Write ``error`` for all questions about a sample, which counts as one failure."""
        fail_all(self.journal, questions, error)
        self.monitor.count_finished(questions[0].key, error)


async def _every(seconds: float, action: Callable[[], None]) -> None:
    """Call ``action`` in a thread, every ``seconds``, until this is cancelled."""
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(action)
