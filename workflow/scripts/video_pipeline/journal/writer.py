"""Writes a journal file. No other module writes records."""

from __future__ import annotations

import errno
import os
import time
import uuid
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.common.files import make_folder, sync_folder
from video_pipeline.common.locks import holder
from video_pipeline.journal.format import VERSION, clean_text


class JournalWriter:
    """Appends records to a new file of its own, each by one ``write`` call.

    Not for several threads at once. :meth:`sync` makes the records survive a power loss.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        """``prefix``: the start of the name of the file (:func:`attempt_prefix` or
        :data:`REOPENS`)."""
        make_folder(folder)
        stamp = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        self.path = folder / f"{prefix}{stamp}.jsonl"
        self._fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        sync_folder(folder)
        self._write({"__journal": VERSION, **holder()})

    def answer(
        self,
        key: str,
        part: str,
        request: str,
        output_text: str | list[str],
        usage: dict[str, Any],
        reasoning: str | list[str] | None = None,
        logprobs: list[Any] | None = None,
        damaged: bool = False,
    ) -> None:
        """Append the answer to a question (key, part and request digest), or a list of answers.
        ``usage`` holds token counts and ``finish_reason``; ``damaged`` says that a video of the
        sample is damaged."""
        answer = _answer(output_text, usage, reasoning, logprobs, damaged)
        self._record(key, part, request, answer)

    def error(
        self, key: str, part: str, request: str, error: dict[str, str], **answer: Any
    ) -> None:
        """Append an error with ``stage``, ``type`` and ``message``. If the model had answered,
        ``answer`` are further arguments of :meth:`answer`."""
        error = {name: clean_text(text) for name, text in error.items()}
        self._record(
            key, part, request, {"__error": error, **(_answer(**answer) if answer else {})}
        )

    def engine_died(self, key: str, part: str, request: str, cause: str = "") -> None:
        """Note that the engine died with this request in it, and why, if that is known."""
        known = {"__cause": clean_text(cause)} if cause else {}
        self._record(key, part, request, {"__engine_died": True, **known})

    def reopen(self, key: str, part: str, request: str, file: str) -> None:
        """Take back this question's error in the journal file ``file``, or its engine's death."""
        self._record(key, part, request, {"__reopens": file})

    def _record(self, key: str, part: str, request: str, fields: dict[str, Any]) -> None:
        self._write({"__key": key, "__part": part, "__request": request, **fields})

    def _write(self, record: dict[str, Any]) -> None:
        line = orjson.dumps(record) + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """Flush to the disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Flush to the disk and close."""
        self.sync()
        os.close(self._fd)

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(
    output_text: str | list[str],
    usage: dict[str, Any],
    reasoning: str | list[str] | None = None,
    logprobs: list[Any] | None = None,
    damaged: bool = False,
) -> dict[str, Any]:
    """The fields of a record that hold an answer."""
    answer: dict[str, Any] = {"output_text": _clean(output_text), "__usage": usage}
    if reasoning is not None:
        answer["__reasoning"] = _clean(reasoning)
    if logprobs is not None:
        answer["__logprobs"] = logprobs
    if damaged:
        answer["damaged"] = True
    return answer


def _clean(text: str | list[str]) -> str | list[str]:
    return clean_text(text) if isinstance(text, str) else list(map(clean_text, text))
