"""Asks the engine a question about a sample, and writes the answer to the journal."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from video_pipeline.decode.preparing import Prepared
from video_pipeline.engine.base import Answer, Constraints, RequestRefused
from video_pipeline.infer.shard import Shard
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.answers import cut_off_at, why_no_answer
from video_pipeline.run.chunks import Question

logger = logging.getLogger(__name__)

# A request has the engine's own type.
Generate = Callable[[Question, Any, Constraints], Awaitable[Answer]]
"""Answers a request about a question under constraints, see :meth:`Engine.generate`."""


class Outcome(NamedTuple):
    """The outcome of one question: its ``__error``, the answer of the model, and the setting that
    cut the answer off, if there is one."""

    error: dict[str, str] | None
    answer: Answer | None = None
    cut_off: str | None = None


async def ask(
    shard: Shard,
    position: int,
    question: Question,
    prepared: Prepared,
    journal: JournalWriter,
    generate: Generate,
) -> Outcome:
    """Ask one question about the sample at ``position``, and write the answer to the journal.

    If an answer with a schema was cut off, the question is asked again, once, with
    ``run.retry_truncated`` tokens, unless the task itself allows as many.
    """
    config = shard.config
    constraints = shard.constraints(position, question.part)
    has_schema = constraints.json_schema is not None
    request = prepared.requests[question.part]
    more = config.run.retry_truncated
    limit = constraints.sampling.get("max_tokens", config.sampling.max_tokens)
    try:
        answer = await generate(question, request, constraints)
        # A task may set null, which is no limit.
        if answer.is_truncated and has_schema and more and limit is not None and limit < more:
            answer = await generate(question, request, constraints.with_max_tokens(more))
        else:
            answer = replace(answer, max_tokens=constraints.sampling.get("max_tokens"))
    except RequestRefused as refusal:
        error = {"stage": "generate", "type": refusal.type, "message": str(refusal)}
        _fail(journal, question, error)
        return Outcome(error)
    answered = {**answer.as_record(), "damaged": prepared.damaged}
    no_answer = why_no_answer(
        answer.usage, answer.output_text, answer.reasoning, config, has_schema=has_schema
    )
    if no_answer is not None and (has_schema or not answer.is_truncated):
        # This is final until `retry` opens it again: the next answer may end.
        _fail(journal, question, no_answer, **answered)
    else:
        # The journal does not decide whether free text that was cut off counts.
        journal.answer(*question, **answered)
    return Outcome(no_answer, answer, cut_off_at(answer.usage, config))


def fail_all(
    journal: JournalWriter, questions: Iterable[Question], error: dict[str, str]
) -> dict[str, str]:
    """Write ``error`` to the journal for each question about a sample, and return it."""
    for question in questions:
        _fail(journal, question, error)
    return error


def _fail(
    journal: JournalWriter, question: Question, error: dict[str, str], **answered: Any
) -> None:
    journal.error(*question, error, **answered)
    part = f", {question.part}" if question.part else ""
    logger.warning("sample %s%s failed: %s", question.key, part, error)


def first_error(outcomes: Iterable[Outcome]) -> dict[str, str] | None:
    """The error of a sample: that of the first question that has one."""
    return next((outcome.error for outcome in outcomes if outcome.error), None)


def request_name(question: Question) -> str:
    """The name of a request in the engine. No other request of the chunk has it."""
    return json.dumps(question[:2]) if question.part else question.key
