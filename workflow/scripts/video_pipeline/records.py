"""Output records: views of the journal, made by the task's ``parse``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from video_pipeline.answers import cut_off_at, why_no_answer
from video_pipeline.chunks import ChunkEntry
from video_pipeline.config import Config
from video_pipeline.errors import TaskError, UserError, where
from video_pipeline.journal import clean_text
from video_pipeline.model.processor import SIMULATED_MODEL
from video_pipeline.samples import task_sample
from video_pipeline.tasks.base import WHOLE, Task

FIRST_LOOK = 20
"""The error rate is looked at from this many failures on."""


class Record(NamedTuple):
    """An output record.

    Attributes:
        line: The record as a line of the output.
        error: ``__error``, if the sample failed.
        usage: ``__usage``, if the model has answered.
        cut_off: The setting that cut the answer off (of several, the first that was), if one did.
    """

    line: bytes
    error: dict[str, str] | None
    usage: dict[str, Any] | None
    cut_off: str | None


class Records:
    """Builds the records of the output.

    A changed ``parse`` or ``run.truncated`` costs no inference: the journal keeps what the model
    said.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self._config = config
        self._task = task
        simulated = config.run.engine == "simulated"
        model = SIMULATED_MODEL if simulated else config.vllm.model
        self._known = {"__task": task.name, "__model": model}

    def build(self, entry: ChunkEntry, journaled: dict[str, dict[str, Any]]) -> Record:
        """The output record of a sample, from its records in the journal, by part.

        Raises :class:`TaskError` if ``parse`` returns a reserved name or no dict.
        """
        if WHOLE in entry.requests:
            view = self._view(entry, WHOLE, journaled[WHOLE])
        else:
            parts = entry.requests
            view = _together({part: self._view(entry, part, journaled[part]) for part in parts})
        if view.error is None:
            usage = view.answered["__usage"]
            head = {"__key": entry.key, "__status": "ok", **self._known, "__usage": usage}
        else:
            head = {"__key": entry.key, "__status": "error", "__error": view.error, **self._known}
        # the input as it stands in the chunk, whatever parse did to its sample
        raw = orjson.Fragment(entry.text)
        line = orjson.dumps({**head, "input": raw, **view.answered})
        if view.fields != _NO_FIELDS:
            line = b"%b,%b" % (line[:-1], view.fields[1:])
        return Record(line + b"\n", view.error, view.answered.get("__usage"), view.cut_off)

    def _view(self, entry: ChunkEntry, part: str, journaled: dict[str, Any]) -> _View:
        answered = {n: journaled[n] for n in _ANSWERED if n in journaled}
        usage = answered.get("__usage")
        cut_off = usage and cut_off_at(usage, self._config)
        error = journaled.get("__error")
        if error is None:
            error = why_no_answer(usage, answered["output_text"], self._config)
        if error is not None:
            return _View(error, answered, cut_off)
        sample = task_sample(entry.key, entry.raw, self._config)
        try:
            parsed = self._task.parsed(journaled["output_text"], sample, part)
            if "damaged" in parsed:  # a field of the task's own goes first
                answered.pop("damaged", None)
            fields = orjson.dumps(parsed)
        except TaskError:
            raise
        except Exception as failure:
            return _View(_parse_error(failure), answered, cut_off)
        return _View(None, answered, cut_off, fields)


_ANSWERED = ("__usage", "output_text", "__reasoning", "damaged")
_NO_FIELDS = b"{}"


@dataclass(slots=True)
class _View:
    """What came of one question: an error or not, what the model said, which setting cut it off,
    and the task's fields as JSON."""

    error: dict[str, str] | None
    answered: dict[str, Any]
    cut_off: str | None
    fields: bytes = _NO_FIELDS


def _together(views: dict[str, _View]) -> _View:
    """What came of several questions: the first error (one of stage ``parse``, which has an answer,
    only if there is no other), texts and fields under the names of the questions, and the sum of
    their tokens. Their ``finish_reason`` is ``stop`` if all of them ended by themselves."""
    answered: dict[str, Any] = {}
    usages = [view.answered["__usage"] for view in views.values() if "__usage" in view.answered]
    if usages:
        answered["__usage"] = {
            name: sum(usage[name] for usage in usages)
            for name in ("prompt_tokens", "completion_tokens")
        }
        reasons = [usage["finish_reason"] for usage in usages]
        others = [reason for reason in reasons if reason != "stop"]
        answered["__usage"]["finish_reason"] = (
            "length" if "length" in reasons else next(iter(others), "stop")
        )
    for name in ("output_text", "__reasoning"):
        said = {part: v.answered[name] for part, v in views.items() if name in v.answered}
        if said:
            answered[name] = said
    if "damaged" not in views and any("damaged" in view.answered for view in views.values()):
        answered["damaged"] = True
    errors = [
        {**view.error, "message": f"{part}: {view.error['message']}"}
        for part, view in views.items()
        if view.error is not None
    ]
    error = min(errors, key=lambda error: error["stage"] == "parse", default=None)
    fields = {part: orjson.Fragment(v.fields) for part, v in views.items() if v.error is None}
    cut_off = next((view.cut_off for view in views.values() if view.cut_off), None)
    return _View(error, answered, cut_off, orjson.dumps(fields))


def _parse_error(error: Exception) -> dict[str, str]:
    message = clean_text(f"{error} ({where(error)})")
    return {"stage": "parse", "type": type(error).__name__, "message": message}


@dataclass
class ErrorRate:
    """Failures among the finished samples of a chunk. The rate tells that storage or engine are at
    fault. Where ``parse`` fails the answer is there, so that is counted apart and stops no run.

    Attributes:
        limit: ``run.max_error_rate``.
        finished: Samples that are done, failed ones included.
        failed: Samples that failed, but for those of stage ``parse``.
        unparsed: Samples that failed in stage ``parse``.
        last_unparsed: The ``__error`` of the last one.
    """

    limit: float
    finished: int = 0
    failed: int = 0
    unparsed: int = 0
    last_unparsed: dict[str, str] = field(default_factory=dict)
    _last: dict[str, str] = field(default_factory=dict)

    def count(self, error: dict[str, str] | None = None) -> None:
        """Count one finished sample, with its ``__error`` if it failed."""
        self.finished += 1
        if error is None:
            return
        if error["stage"] == "parse":
            self.unparsed += 1
            self.last_unparsed = error
        else:
            self.failed += 1
            self._last = error

    def exceeded(self, under_way: int = 0) -> bool:
        """Whether the limit is passed, by at least :data:`FIRST_LOOK` failures.

        ``under_way``: samples that were read well and wait for their answer. They count as not
        failed, because a file that cannot be read fails at once and an answer takes its time.
        """
        return self.failed >= FIRST_LOOK and self.failed > self.limit * (self.finished + under_way)

    def check(self, what: str, more: str = "", under_way: int = 0) -> None:
        """Raise :class:`UserError` if the limit is passed."""
        if self.exceeded(under_way):
            last = "the last: {stage}: {type}: {message}".format(**self._last)
            apart = ""
            if self.unparsed:
                apart = f"not counted: {self.unparsed} that failed in parse"
            tail = "".join(f"; {part}" for part in (last, apart, more) if part)
            raise UserError(
                f"{what}: {self.failed} of {self.finished} finished samples failed, more than "
                f"run.max_error_rate: {self.limit:g}{tail}. Fix the cause and run again (what is "
                "done stays done), or raise run.max_error_rate to accept them"
            )
