"""The stream of one inference job: pending samples, decode processes, engine, journal.

Samples are read and prepared by decode processes and submitted to the engine the moment they are
ready, in any order; answers go to the journal as they come. The engine is never drained, and what
is held at once is bounded in bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from video_pipeline.answers import cut_off_at, describe_cut_off, why_no_answer
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import Prepared, WorkerSpec
from video_pipeline.engine import create_engine, modules_of
from video_pipeline.engine.base import (
    Answer,
    Constraints,
    Engine,
    EngineDead,
    RequestRefused,
)
from video_pipeline.gpus import gpus_needed
from video_pipeline.journal import JournalWriter
from video_pipeline.peaks import peak_flops
from video_pipeline.progress import Pace, describe_pace, describe_samples
from video_pipeline.statistics import JobStatistics, State, StatisticsFile

if TYPE_CHECKING:
    from video_pipeline.chunks import Question
    from video_pipeline.inference import Shard

logger = logging.getLogger(__name__)

SYNC_SECONDS = 5.0
"""How often the journal is flushed to the disk."""

PROGRESS_SECONDS = 60.0
"""How often a line of progress is logged."""

TICK_SECONDS = 1.0
"""How often what the job spends is looked at."""

STATISTICS_SECONDS = 5.0
"""How often it is written down, for whoever watches."""

ENGINE_LOOK_SECONDS = 1.0
"""How often is looked whether the engine is stuck."""

QUARANTINE_DEATHS = 3
"""A sample that was in the engine so often when it died is not tried again."""

SUSPECTS_DIVISOR = 16
"""After a death, the samples that were in the engine are tried after all others, and by so many
times fewer at once, after a second death again: 256, 16, 1. So the third death names the one."""

PARSED_AT_ONCE = 20
"""How many answers are parsed as they come, to find a task that breaks its contract early."""


def run_stream(shard: Shard, folder: Path, num_workers: int, card: str | None) -> None:
    """Infer all pending samples of ``shard``, with ``num_workers`` decode processes.

    ``folder`` is the job's folder of shared memory, ``card`` what its devices are. Raises
    :class:`UserError` where the user's code or settings are at fault, also if more than
    ``run.max_error_rate`` of the samples failed, and :class:`EngineDead`.
    """
    try:
        asyncio.run(Stream(shard, folder, num_workers, card).run())
    except BaseExceptionGroup as group:
        # one failure cancels the rest of its task group: that one is the message
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, EngineDead):
            raise EngineDead(
                f"rank {shard.rank}: the engine died: {error}. What was in it is tried last and "
                "with care by the next attempt: Snakemake's own (retries), or run the same command "
                "again"
            ) from None
        raise error from None


@dataclass
class Window:
    """Bounds what is held at once: samples being prepared, ready, and submitted.

    Attributes:
        max_bytes: Bound on ready plus submitted samples.
        max_samples: Bound on their number.
        max_preparing: Bound on samples in the decode processes.
        engine_is_saturated: Whether more requests would not make the engine faster.
        limits: Seconds in which the decode processes (``decode``) or the engine (``engine``) kept
            the run from being faster.
    """

    max_bytes: float
    max_samples: int
    max_preparing: int
    engine_is_saturated: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.preparing = self.held = self.held_bytes = 0
        self.limits = {"decode": 0.0, "engine": 0.0}
        self._largest = 0
        self._all_admitted = False
        self._since: float | None = None
        self._changed = asyncio.Condition()

    def start_clock(self) -> None:
        """Count ``limits`` from the first call on."""
        if self._since is None:
            self._since = time.monotonic()

    async def admit(self) -> None:
        """Wait until one more sample may be prepared."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self._account()
            self._all_admitted = False
            self.preparing += 1

    async def prepared(self, num_bytes: int) -> None:
        """A sample of ``num_bytes`` is ready (0 if it failed and holds nothing)."""
        async with self._changed:
            self._account()
            self.preparing -= 1
            self.held += 1
            self.held_bytes += num_bytes
            self._largest = max(self._largest, num_bytes)
            self._changed.notify()

    async def release(self, num_bytes: int) -> None:
        """A sample of ``num_bytes`` is finished."""
        async with self._changed:
            self._account()
            self.held -= 1
            self.held_bytes -= num_bytes
            self._changed.notify()

    def limits_now(self) -> dict[str, float]:
        """``limits``, up to now."""
        self._account()
        return self.limits

    def all_admitted(self) -> None:
        """No more samples will come, for now."""
        self._account()
        self._all_admitted = True

    def _has_room(self) -> bool:
        if self.preparing + self.held == 0:
            return True  # one sample must always be possible, however large
        return self.preparing < self.max_preparing and not self._is_full()

    def _is_full(self) -> bool:
        """Whether what the engine has not finished leaves no room for one more sample."""
        expected = self.held_bytes + (self.preparing + 1) * self._largest
        return self.held >= self.max_samples or expected > self.max_bytes

    def _account(self) -> None:
        """Charge the time since the last change to what the run was waiting for."""
        if self._since is None:
            return
        now = time.monotonic()
        all_prepared = self._all_admitted and self.preparing == 0
        waits_for_engine = self._is_full() or all_prepared or self.engine_is_saturated()
        self.limits["engine" if waits_for_engine else "decode"] += now - self._since
        self._since = now


class Outcome(NamedTuple):
    """What came of one question.

    Attributes:
        error: Its ``__error``, if it came to one.
        is_answered: Whether the model said something.
        cut_off: The setting that cut the answer off, if one did.
    """

    error: dict[str, str] | None
    is_answered: bool = False
    cut_off: str | None = None


class Stream:
    """Everything that happens while the model is loaded."""

    def __init__(self, shard: Shard, folder: Path, num_workers: int, card: str | None) -> None:
        config, pending = shard.config, len(shard.pending)
        self._shard = shard
        self._folder = folder
        self._num_processes = min(num_workers, pending)
        self._window = Window(
            # shared memory may be small, as in containers
            max_bytes=min(config.data.max_ready_gb * 1e9, 0.8 * shutil.disk_usage(folder).free),
            max_samples=2 * config.run.max_in_flight,
            max_preparing=self._num_processes,
        )
        self._engine_ready = asyncio.Event()
        self._in_engine: dict[str, Question] = {}
        self._crashed: list[int] = []
        self._last_try = False
        self._told_cut_off = ""
        self._statistics = JobStatistics(
            shard.rank,
            self._num_processes,
            shard.task.name,
            model=config.model_name,
            quantization=config.vllm.arguments.get("quantization"),
            gpus=gpus_needed(config),
            card=card,
            samples=len(shard),
            pending=pending,
        )

    async def run(self) -> None:
        """Infer all pending samples of the shard."""
        shard = self._shard
        shard.check_requests()
        shard.error_rate.check(f"rank {shard.rank}")
        server = ForkServer(modules_of(shard.config))  # it imports while the engine is configured
        try:
            await self._run(server)
        finally:
            server.stop()

    async def _run(self, server: ForkServer) -> None:
        shard = self._shard
        engine = create_engine(shard.config, with_videos=shard.with_videos)
        peak = peak_flops(self._statistics.card, engine.precision)
        self._statistics.rate(engine.flops, peak)
        for part in {question.part for question in shard.questions(shard.pending[0])}:
            engine.check(Constraints.of(shard.task, part))
        self._window.engine_is_saturated = lambda: self._submit.locked() or engine.is_saturated()
        spec = WorkerSpec(
            config=shard.config,
            chunk=shard.chunk.path,
            seal=shard.chunk.seal,
            model=engine.dataset_model,
            preparer=engine.preparer(),
            folder=self._folder,
            files=shard.code,
            decoder=shard.config.vision.decoder,
        )
        journal = shard.open_journal()
        spent = StatisticsFile(journal.path)
        pool = DecodePool(server, spec, self._num_processes, shard.config.data.sample_timeout_s)
        state: State = "failed"
        try:
            with journal:
                await self._infer_all(engine, pool, journal, spent)
            state = "done"
        finally:
            self._tick()
            pool.stop()
            engine.stop()
            self._statistics.end(state)
            spent.write(*self._statistics.snapshot())

    def _tick(self) -> None:
        """Bring the statistics up to now."""
        rate, statistics = self._shard.error_rate, self._statistics
        statistics.finished, statistics.finished_failed = rate.finished, rate.failed
        statistics.tick(self._window.limits_now())

    async def _keep_statistics(self, spent: StatisticsFile) -> None:
        """Write down what the job spends while it runs, until cancelled."""
        written = -math.inf
        while True:
            self._tick()
            if time.monotonic() - written >= STATISTICS_SECONDS:
                written = time.monotonic()
                await asyncio.to_thread(spent.write, *self._statistics.snapshot())
            await asyncio.sleep(TICK_SECONDS)

    async def _infer_all(
        self, engine: Engine, pool: DecodePool, journal: JournalWriter, spent: StatisticsFile
    ) -> None:
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(_every(SYNC_SECONDS, journal.sync)),
                group.create_task(_every(PROGRESS_SECONDS, self._log_progress)),
                group.create_task(self._keep_statistics(spent)),
                group.create_task(self._watch_engine(engine, journal)),
            ]
            self._quarantine(journal)
            start = group.create_task(self._start(engine))
            for positions, max_in_flight in self._rounds():
                self._submit = asyncio.Semaphore(max_in_flight)
                async with asyncio.TaskGroup() as samples:
                    for position in positions:
                        await self._window.admit()
                        samples.create_task(self._infer_one(position, engine, pool, journal))
                    self._window.all_admitted()
            await start
            for helper in helpers:
                helper.cancel()
        self._tick()
        self._log_progress()

    def _rounds(self) -> Iterator[tuple[Iterable[int], int]]:
        """Positions to infer, and how many of them may be in the engine at once, round by round:
        first what nothing is known against, then what may have killed the engine, and in the end,
        one at a time, what has killed its decode process."""
        shard, at_once = self._shard, self._shard.config.run.max_in_flight
        deaths = shard.deaths
        yield (position for position in shard.pending if position not in deaths), at_once
        for count in range(1, QUARANTINE_DEATHS):
            at_once = max(1, at_once // SUSPECTS_DIVISOR)
            yield [position for position, n in deaths.items() if n == count], at_once
        self._last_try = True
        self._window.max_preparing = 1
        yield self._crashed, 1

    def _quarantine(self, journal: JournalWriter) -> None:
        for position, count in self._shard.deaths.items():
            if count >= QUARANTINE_DEATHS:
                message = f"it was in the engine {count} times when the engine died"
                error = {"stage": "quarantine", "type": "EngineDead", "message": message}
                self._fail_all(journal, self._shard.questions(position), error)

    async def _watch_engine(self, engine: Engine, journal: JournalWriter) -> None:
        """Raise :class:`EngineDead` if the engine has requests and stands still."""
        timeout_s = self._shard.config.run.engine_timeout_s
        steps, since = engine.steps, time.monotonic()
        while True:
            await asyncio.sleep(min(ENGINE_LOOK_SECONDS, timeout_s / 2))
            if not self._in_engine or engine.steps != steps:
                steps, since = engine.steps, time.monotonic()
            elif time.monotonic() - since > timeout_s:
                self._note_death(journal)
                raise EngineDead(f"no sign of life for run.engine_timeout_s: {timeout_s:g} s")

    def _note_death(self, journal: JournalWriter) -> None:
        """Write down, once, which requests were in the engine when it died."""
        in_engine, self._in_engine = self._in_engine, {}
        for question in in_engine.values():
            journal.engine_died(*question)

    async def _start(self, engine: Engine) -> None:
        """Load the model; meanwhile the decode processes start and prepare the first samples."""
        await engine.start(self._folder)
        self._engine_ready.set()

    async def _infer_one(
        self, position: int, engine: Engine, pool: DecodePool, journal: JournalWriter
    ) -> None:
        questions = self._shard.questions(position)
        prepared: Prepared | None = None
        try:
            try:
                prepared = await pool.prepare(position, [question.part for question in questions])
            finally:
                await self._window.prepared(prepared.num_bytes if prepared else 0)
            self._statistics.count_prepared(prepared)
            await self._engine_ready.wait()
            # a group, so that none is left that writes to a journal when another one fails
            async with asyncio.TaskGroup() as asked:
                answers = [
                    asked.create_task(self._ask(position, each, engine, prepared, journal))
                    for each in questions
                ]
        except SampleError as error:
            if error.stage == "crash" and not self._last_try:
                key = questions[0].key
                logger.warning("sample %s: %s; it is tried once more, alone", key, error)
                self._crashed.append(position)
            else:
                self._fail_all(journal, questions, error.as_record())
        else:
            outcomes = [answer.result() for answer in answers]
            if any(each.is_answered for each in outcomes):
                cut_off = next((each.cut_off for each in outcomes if each.cut_off), None)
                patches = engine.patches(prepared.requests.values())
                self._statistics.count_sample(prepared, cut_off, patches)
            error = next((each.error for each in outcomes if each.error), None)
            self._count(questions[0].key, error)
        finally:
            await self._window.release(prepared.num_bytes if prepared else 0)

    async def _ask(
        self,
        position: int,
        question: Question,
        engine: Engine,
        prepared: Prepared,
        journal: JournalWriter,
    ) -> Outcome:
        """Have one question answered and write the answer down."""
        config = self._shard.config
        constraints = Constraints.of(self._shard.task, question.part)
        has_schema = constraints.json_schema is not None
        request = prepared.requests[question.part]
        more_tokens = config.run.retry_truncated
        try:
            answer = await self._generate(question, request, constraints, engine, journal)
            if answer.is_truncated and has_schema and more_tokens:
                constraints = replace(constraints, max_tokens=more_tokens)
                answer = await self._generate(question, request, constraints, engine, journal)
        except RequestRefused as error:
            record = {"stage": "generate", "type": error.type, "message": str(error)}
            self._fail(journal, question, record)
            return Outcome(record)
        self._statistics.count(answer)
        said, usage = answer.output_text, answer.usage
        error = why_no_answer(usage, said, config, has_schema=has_schema)
        answered = {**answer.as_record(), "damaged": prepared.damaged}
        if error is not None and (has_schema or not answer.is_truncated):
            # final until `retry` opens it again: then it may end
            self._fail(journal, question, error, **answered)
        else:
            # whether free text that was cut off counts is not for the journal to say
            journal.answer(*question, **answered)
        if error is None and self._statistics.inferred < PARSED_AT_ONCE:
            parsed = self._shard.try_parse(position, question.part, said)
            self._statistics.unparsed += not parsed
        return Outcome(error, is_answered=True, cut_off=cut_off_at(usage, config))

    async def _generate(
        self,
        question: Question,
        request: Any,
        constraints: Constraints,
        engine: Engine,
        journal: JournalWriter,
    ) -> Answer:
        name = json.dumps(question[:2]) if question.part else question.key
        async with self._submit:
            self._window.start_clock()
            self._in_engine[name] = question
            try:
                with self._statistics.engine_busy():
                    return await engine.generate(name, request, constraints)
            except EngineDead:
                self._note_death(journal)
                raise
            finally:
                self._in_engine.pop(name, None)

    def _fail_all(
        self, journal: JournalWriter, questions: list[Question], error: dict[str, str]
    ) -> None:
        """Nothing can be asked about a sample: an error for each question, which counts as one."""
        for question in questions:
            self._fail(journal, question, error)
        self._count(questions[0].key, error)

    def _fail(
        self, journal: JournalWriter, question: Question, error: dict[str, str], **answered: Any
    ) -> None:
        journal.error(*question, error, **answered)
        part = f", {question.part}" if question.part else ""
        logger.warning("sample %s%s failed: %s", question.key, part, error)

    def _count(self, key: str, error: dict[str, str] | None) -> None:
        """Count the finished sample ``key``. Raises :class:`UserError` if too many have failed."""
        rate = self._shard.error_rate
        rate.count(error)
        if error is None:
            return
        self._statistics.count_error(key, error)
        # this sample is among those that the window holds, unless it was put in quarantine unread
        under_way = max(0, self._window.held - 1)
        if rate.exceeded(under_way):
            reopened = self._shard.reopen_read_failures()
            rate.check(
                f"rank {self._shard.rank}",
                f"its {reopened} failures to read are open again for the next run",
                under_way,
            )

    def _log_progress(self) -> None:
        rate, window = self._shard.error_rate, self._window
        left = len(self._shard) - rate.finished
        logger.info(
            "rank %d: %s; %s; %d being read, %d ready or in the engine (%.1f MB)",
            self._shard.rank,
            describe_samples(rate.finished, len(self._shard), rate.failed),
            describe_pace(Pace.of([self._statistics.as_dict()]), left),
            window.preparing,
            window.held,
            window.held_bytes / 1e6,
        )
        cut_off = describe_cut_off(self._statistics.truncated)
        if cut_off != self._told_cut_off:
            self._told_cut_off = cut_off
            logger.warning("rank %d: %s", self._shard.rank, cut_off)


async def _every(seconds: float, action: Any) -> None:
    """Call ``action`` in a thread every ``seconds``, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(action)
