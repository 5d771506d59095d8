"""Why an engine died: its processes write down the errors that they log.

vLLM's own word is "See root cause above": the exception itself is logged by the process that it was
raised in. So each process of the engine logs to a handler of ours, too.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from video_pipeline.faults import is_refusal

BURST_SECONDS = 60.0
"""Errors so long before the last one have not led to it."""

MAX_CHARACTERS = 1000
"""Of a cause in a message; its log has the rest."""

_CONSEQUENCES = {"EngineDeadError"}
"""Exceptions that say only that something else has failed."""


class Cause(NamedTuple):
    """An error that a process of the engine has logged.

    Attributes:
        text: Type and text of the exception, in one line; what was logged where there is none.
        is_exception: Whether there is one.
        is_refusal: Whether another attempt would only repeat it.
        time: When, in seconds since the epoch.
    """

    text: str
    is_exception: bool
    is_refusal: bool
    time: float


class NoteErrors(logging.Handler):
    """Writes what a process logs as an error to a file that all processes of the engine share."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            cause = Cause(_line(record.getMessage()), False, False, record.created)
        elif type(error).__name__ in _CONSEQUENCES:
            return
        else:
            cause = Cause(_describe(error), True, is_refusal(error), record.created)
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(cause) + "\n")


def noting(logging_config: dict[str, Any], path: Path) -> dict[str, Any]:
    """``logging_config``, a schema for :func:`logging.config.dictConfig`, with the handler."""
    handler = {"()": f"{NoteErrors.__module__}.{NoteErrors.__qualname__}", "path": str(path)}
    vllm = {"level": "INFO", **logging_config.get("loggers", {}).get("vllm", {})}
    vllm["handlers"] = [*vllm.get("handlers", []), "note_errors"]
    return {
        **logging_config,
        "handlers": {**logging_config.get("handlers", {}), "note_errors": handler},
        "loggers": {**logging_config.get("loggers", {}), "vllm": vllm},
    }


def root_cause(path: Path) -> Cause | None:
    """The first of the errors in ``path`` that the engine has died of; None if none was noted.

    The first, because one process takes the others with it; and an exception rather than a message.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    causes = [Cause(*json.loads(line)) for line in lines]
    latest = max(cause.time for cause in causes)
    burst = [cause for cause in causes if cause.time >= latest - BURST_SECONDS]
    return min(burst, key=lambda cause: (not cause.is_exception, cause.time))


def _describe(error: BaseException) -> str:
    text = _line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    cause = error.__cause__
    if cause is None or str(cause) in str(error):
        return text
    return f"{text} (because of {_line(f'{type(cause).__name__}: {cause}')})"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]} ..."
