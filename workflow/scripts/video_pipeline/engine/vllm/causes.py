"""Finds out why an engine died, from the errors that its processes log.

vLLM itself says only "See root cause above": the process that raised the exception logs it. So each
process of the engine logs to a handler of ours, too. For that it imports this module, which
therefore does not import vLLM.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from video_pipeline.common.faults import is_refusal
from video_pipeline.errors import Failure, where

if TYPE_CHECKING:
    from video_pipeline.engine.vllm.compat import VllmConfig

DATES = "%Y-%m-%d %H:%M:%S"
"""Format of the times in log lines; vLLM's own has no year."""

BURST_SECONDS = 60.0
"""An error that was logged longer before the last one did not cause it."""

MAX_CHARACTERS = 1000
"""Length of a cause in a message; the log has the rest."""

_CONSEQUENCES = {"EngineDeadError"}
"""Exceptions that say only that something else has failed."""


class Cause(NamedTuple):
    """An error that a process of the engine has logged.

    Attributes:
        text: Type and text of the exception, or else the logged message, in one line.
        is_exception: Whether an exception was logged.
        is_refusal: Whether another attempt would only repeat it.
        time: Seconds since the epoch.
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
            cause = Cause(one_line(record.getMessage()), False, False, record.created)
        elif type(error).__name__ in _CONSEQUENCES:
            return
        else:
            cause = Cause(_describe(error), True, is_refusal(error), record.created)
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(cause) + "\n")


def note_causes(vllm_config: VllmConfig, folder: Path) -> Path | None:
    """Let the engine's processes note in ``folder`` why they die. The user's logging configuration
    stays as it is otherwise.

    Returns:
        The file for :func:`root_cause`; None if the user has turned vLLM's logging off, or has
        chosen another format than text.
    """
    from video_pipeline.engine.vllm.compat import default_logging

    settings = vllm_config.logging_config
    if not settings.configure_logging or settings.formatter != "text":
        return None
    if settings.pylogging_config_file is not None:
        text = Path(settings.pylogging_config_file).read_text(encoding="utf-8")
        logging_config = json.loads(text)
    else:
        logging_config = default_logging(settings.log_level, DATES)
    causes = folder / "engine.errors.jsonl"
    path = folder / "engine.logging.json"
    path.write_text(json.dumps(noting(logging_config, causes)), encoding="utf-8")
    vllm_config.logging_config = dataclasses.replace(settings, pylogging_config_file=str(path))
    return causes


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


def root_cause(path: Path | None) -> Cause | None:
    """The error in ``path`` that killed the engine; None if none was noted. It is the first one of
    the last burst, because the others follow from it. An exception goes before a message."""
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    causes = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):  # The process was killed as it wrote this.
            causes.append(Cause(*json.loads(line)))
    if not causes:
        return None
    latest = max(cause.time for cause in causes)
    burst = [cause for cause in causes if cause.time >= latest - BURST_SECONDS]
    return min(burst, key=lambda cause: (not cause.is_exception, cause.time))


def origin_of(error: BaseException) -> tuple[str, str]:
    """Type and text, in one line, of the first exception in the chain of ``error``: vLLM writes all
    tensors of a request into the later ones. If the text was not written for people, such as ``list
    index out of range``, it ends with the place."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = one_line(str(error))
    is_made_for_people = isinstance(error, ValueError | OSError | Failure)
    return type(error).__name__, text if is_made_for_people else f"{text} ({where(error)})"


def _describe(error: BaseException) -> str:
    text = one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    cause = error.__cause__
    if cause is None or str(cause) in str(error):
        return text
    return f"{text} (because of {one_line(f'{type(cause).__name__}: {cause}')})"


def one_line(text: str) -> str:
    """``text`` in one line of at most about :data:`MAX_CHARACTERS`."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]} ..."
