"""Reads the final records of a journal."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from video_pipeline.journal.format import (
    ENGINE_DIED,
    ERROR,
    OUTPUT_TEXT,
    parse_record,
    record_head,
    scan,
)
from video_pipeline.journal.index import JournalIndex, Location, read_index

logger = logging.getLogger(__name__)

_MAX_WARNINGS = 20
_READ_AHEAD = 1 << 16  # Records are mostly read in the order in which they lie.
_MAX_OPEN = 32
"""Journal files. On most systems a process may have 1,024 files open, on some only 256."""


class Finished(NamedTuple):
    """A final record, and where it lies."""

    location: Location
    record: dict[str, Any]


class JournalReader:
    """Finds and reads the final records of samples; keeps the files it read last open.

    Somebody may have edited, restored or removed a file since it was indexed. So each record is
    compared with its question. When the first one does not match, the whole journal is read again,
    and what it does not hold counts as missing.
    """

    def __init__(self, folder: Path, index: JournalIndex) -> None:
        self._folder = folder
        self._index = index
        self._checked_index: JournalIndex | None = None
        self._num_moved = 0
        self._streams: OrderedDict[str, BinaryIO] = OrderedDict()

    def find(
        self, key: str, part: str, request: str, known: Location | None = None
    ) -> Finished | None:
        """The final record; None if the question is still open. Arguments are those of
        :meth:`JournalIndex.find`."""
        location = self._index.find(key, part, request, known)
        if location is None:
            return None
        head = record_head(orjson.dumps(key), orjson.dumps(part), request.encode())
        finished = self._read(location, head)
        if finished is None:
            if self._checked_index is None:
                self.close()  # Another file may have the name now.
                self._checked_index = read_index(self._folder, checked=True)
            elsewhere = self._checked_index.find(key, part, request)
            finished = elsewhere and self._read(elsewhere, head)
            outcome = "another one is used" if finished else "it counts as missing"
            self._warn(location, key, part, outcome)
        return finished

    def cause_of_death(self, key: str, part: str, request: str) -> str | None:
        """Why the engine last died with this request in it; None if the journal does not say it."""
        head = record_head(orjson.dumps(key), orjson.dumps(part), request.encode())
        for name in self._index.deaths(key, part, request)[-1:]:
            for _, line, head_end in scan(self._folder / name):
                if line.startswith(ENGINE_DIED, head_end) and line.startswith(head):
                    cause: str | None = orjson.loads(line).get("__cause")
                    return cause
        return None

    def _read(self, location: Location, head: bytes) -> Finished | None:
        """The record at ``location``; None if no record there begins with ``head``."""
        try:
            stream = self._open(location.file)
        except FileNotFoundError:
            return None
        stream.seek(location.offset)
        line = stream.readline()
        kind = ERROR if location.is_error else OUTPUT_TEXT
        if not (line.startswith(kind, len(head)) and line.startswith(head)):
            return None
        record = parse_record(line)
        return None if record is None else Finished(location, record)

    def _open(self, name: str) -> BinaryIO:
        stream = self._streams.get(name)
        if stream is None:
            if len(self._streams) == _MAX_OPEN:
                self._streams.popitem(last=False)[1].close()
            stream = self._streams[name] = open(self._folder / name, "rb", buffering=_READ_AHEAD)
        else:
            self._streams.move_to_end(name)
        return stream

    def _warn(self, location: Location, key: str, part: str, outcome: str) -> None:
        self._num_moved += 1
        if self._num_moved <= _MAX_WARNINGS:
            logger.warning(
                "%s, byte %d: no record of sample %s%s is there any more; %s",
                self._folder / location.file,
                location.offset,
                key,
                f", {part}" if part else "",
                outcome,
            )

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._num_moved > _MAX_WARNINGS:
            logger.warning("... and %d more", self._num_moved - _MAX_WARNINGS)
