"""The plain loop of an inference job: one sample at a time, all in this process.

It is the specification of :mod:`video_pipeline.infer.streaming`: for the same shard both write the
same records to the journal, in another order. ``infer.py --plain`` runs it, for tests and for
debugging: a breakpoint in a dataset, a task or an engine stops here.

One process can do less. A sample that hangs or kills its process hangs or kills the job, nobody
notices an engine that is stuck, and there are no statistics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.preparing import Prepared
from video_pipeline.engine.base import Answer, Constraints, Engine, EngineDead
from video_pipeline.infer.asking import ask, fail_all, first_error, request_name
from video_pipeline.infer.shard import Shard
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.chunks import Question

Prepare = Callable[[int, frozenset[str]], Prepared]
"""Prepares parts of the sample at a position of the chunk."""


def run_plain(shard: Shard, folder: Path) -> None:
    """Infer all pending samples, as :func:`video_pipeline.infer.streaming.run_stream` does."""
    asyncio.run(_infer_all(shard, folder))


async def _infer_all(shard: Shard, folder: Path) -> None:
    engine = shard.create_engine()
    try:
        await engine.start(folder)
        prepare = _preparer(shard, engine, folder)
        with shard.open_journal() as journal:
            for position in shard.pending:
                error = await _infer(shard, position, prepare, engine, journal)
                shard.count_finished(error)
    finally:
        engine.stop()


def _preparer(shard: Shard, engine: Engine, folder: Path) -> Prepare:
    """The work of a decode process in this process: ``Dataset.__getitem__``, then the engine's."""
    spec = shard.worker_spec(engine, folder)
    spec.folder_of(0).mkdir()
    worker = spec.worker(spec.shared(), 0)
    return lambda position, parts: spec.received(worker(position, parts))


async def _infer(
    shard: Shard, position: int, prepare: Prepare, engine: Engine, journal: JournalWriter
) -> dict[str, str] | None:
    """Infer one sample; returns its error, if it has one."""

    async def generate(question: Question, request: Any, constraints: Constraints) -> Answer:
        try:
            return await engine.generate(request_name(question), request, constraints)
        except EngineDead as death:
            journal.engine_died(*question, str(death))
            raise

    questions = shard.questions(position)
    if error := shard.quarantined.get(position):
        return fail_all(journal, questions, error)
    try:
        prepared = prepare(position, frozenset(question.part for question in questions))
    except SampleError as failure:
        return fail_all(journal, questions, failure.as_record())
    return first_error(
        [
            await ask(shard, position, question, prepared, journal, generate)
            for question in questions
        ]
    )
