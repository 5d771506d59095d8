"""Builds output records: views of the journal, made by the task's ``parse``."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

from video_pipeline.config import Config
from video_pipeline.errors import TaskError, place_of, text_of
from video_pipeline.journal.format import clean_text
from video_pipeline.run.answers import cut_off_at, error_of, reason_of_all
from video_pipeline.run.chunks import ChunkEntry
from video_pipeline.samples.input import task_sample
from video_pipeline.tasks.base import ONLY_PART, Task

# The fields of a record of the journal that its output record has, too.
_ANSWER = ("__usage", "output_text", "__reasoning", "__logprobs", "damaged")
_NO_FIELDS = b"{}"
_NO_JSON = {  # The words of orjson, in words for the author of a task.
    "Integer exceeds 64-bit range": "a number that does not fit in 64 bits; return it as text",
    "Dict key must be str": "a dict that has keys other than text",
    "Recursion limit reached": "a value that is nested too deep",
}


class Record(NamedTuple):
    """A record, as a line of the output."""

    line: bytes
    error: dict[str, str] | None  # __error, if the sample failed.
    usage: dict[str, Any] | None  # __usage, if the model has answered.
    cut_off: str | None  # The setting that cut an answer off; None if none did.
    damaged: bool  # Whether it was answered about a video of which a part could not be read.


class _Outcome(NamedTuple):
    """The outcome of one question."""

    error: dict[str, str] | None
    answer: dict[str, Any]  # The fields of the journal's record that hold the answer.
    cut_off: str | None
    fields: bytes = _NO_FIELDS  # Those that the task's parse returned, as JSON.


class RecordBuilder:
    """Builds the records of the output.

    After a change of ``parse`` or ``run.truncated`` nothing is inferred again: the journal keeps
    the model's answers.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self._config = config
        self._task = task
        self._origin = {"__task": task.name, "__model": config.model_name}

    def build(self, entry: ChunkEntry, journaled: dict[str, dict[str, Any]]) -> Record:
        """The output record of a sample, from its records in the journal, by part.

        Raises :class:`TaskError` if ``parse`` returns a reserved name.
        """
        outcomes = {part: self._outcome(entry, part, journaled[part]) for part in entry.requests}
        outcome = outcomes[ONLY_PART] if ONLY_PART in outcomes else _merged(outcomes)
        error, usage = outcome.error, outcome.answer.get("__usage")
        if error is None:
            head = {"__key": entry.key, "__status": "ok", **self._origin, "__usage": usage}
        else:
            head = {"__key": entry.key, "__status": "error", "__error": error, **self._origin}
        # The input as the chunk has it, even if parse has changed its sample.
        raw = orjson.Fragment(entry.text)
        line = orjson.dumps({**head, "input": raw, **outcome.answer})
        if outcome.fields != _NO_FIELDS:
            line = b"%b,%b" % (line[:-1], outcome.fields[1:])
        damaged = error is None and "damaged" in outcome.answer  # A field of the task is not in it.
        return Record(line + b"\n", error, usage, outcome.cut_off, damaged)

    def _outcome(self, entry: ChunkEntry, part: str, journaled: dict[str, Any]) -> _Outcome:
        answer = {name: journaled[name] for name in _ANSWER if name in journaled}
        cut_off = cut_off_at(answer["__usage"], self._config) if "__usage" in answer else None
        error = error_of(journaled, self._config)
        if error is not None:
            return _Outcome(error, answer, cut_off)
        sample = task_sample(entry.key, entry.raw, self._config)
        try:
            text, logprobs = answer["output_text"], answer.get("__logprobs")
            parsed = self._task.parsed(text, sample, part, logprobs)
            if "damaged" in parsed:  # The task's own field goes first.
                answer.pop("damaged", None)
            return _Outcome(None, answer, cut_off, json_of(parsed))
        except TaskError:
            raise
        except (Exception, SystemExit) as failure:
            message = clean_text(f"{text_of(failure)}{place_of(failure)}")
            error = {"stage": "parse", "type": type(failure).__name__, "message": message}
            return _Outcome(error, answer, cut_off)


def json_of(parsed: dict[str, Any]) -> bytes:
    """The fields that ``parse`` returned, as JSON. Raises :class:`ValueError`, which names the
    field that JSON cannot hold."""
    try:
        return orjson.dumps(parsed)
    except orjson.JSONEncodeError as error:
        if len(parsed) > 1:
            for name, value in parsed.items():
                json_of({name: value})  # That of the field at fault raises.
        why = _NO_JSON.get(str(error), f"a value that JSON cannot hold: {error}")
        raise ValueError(f"parse returned {', '.join(map(repr, parsed))} with {why}") from None


def _merged(outcomes: dict[str, _Outcome]) -> _Outcome:
    """The outcome of several questions together.

    The error is the first one; an error of stage ``parse``, which has an answer, only if there is
    no other. Texts and fields stand under the names of the questions, and tokens are summed.
    ``finish_reason`` is ``stop`` if all answers ended by themselves.
    """
    errors = [
        {**outcome.error, "message": f"{part}: {outcome.error['message']}"}
        for part, outcome in outcomes.items()
        if outcome.error is not None
    ]
    answers = {part: outcome.answer for part, outcome in outcomes.items()}
    merged: dict[str, Any] = {}
    usages = [answer["__usage"] for answer in answers.values() if "__usage" in answer]
    if usages:
        merged["__usage"] = {
            name: sum(usage[name] for usage in usages)
            for name in ("prompt_tokens", "completion_tokens")
        }
        reasons = (usage["finish_reason"] for usage in usages)
        merged["__usage"]["finish_reason"] = reason_of_all(reasons)
        if sound := sum(usage.get("sound_tokens", 0) for usage in usages):
            merged["__usage"]["sound_tokens"] = sound
    for name in ("output_text", "__reasoning", "__logprobs"):
        if named := {part: answer[name] for part, answer in answers.items() if name in answer}:
            merged[name] = named
    if "damaged" not in outcomes and any("damaged" in answer for answer in answers.values()):
        merged["damaged"] = True
    fields = {
        part: orjson.Fragment(outcome.fields)
        for part, outcome in outcomes.items()
        if outcome.error is None
    }
    return _Outcome(
        min(errors, key=lambda error: error["stage"] == "parse", default=None),
        merged,
        next((outcome.cut_off for outcome in outcomes.values() if outcome.cut_off), None),
        orjson.dumps(fields),
    )
