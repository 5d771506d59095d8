"""Reads and writes chunks: the samples of one rank, as split wrote them."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from video_pipeline.common.files import EMPTY, Seal
from video_pipeline.errors import SPLIT_AGAIN, UserError
from video_pipeline.journal.index import Location
from video_pipeline.journal.reader import Finished, JournalReader
from video_pipeline.tasks.base import ONLY_PART


class Question(NamedTuple):
    """What is asked about a sample: its key, the name of the conversation (:data:`ONLY_PART` if it
    is the only one) and the request digest."""

    key: str
    part: str
    request: str


@dataclass(slots=True)
class ChunkEntry:
    """One line of a chunk: a sample."""

    key: str
    requests: dict[str, str]  # request digests, by the name of the conversation
    text: bytes  # the input object, as JSON
    done: dict[str, Location]  # where its finished records lay when the input was split

    @property
    def raw(self) -> dict[str, Any]:
        """The input object, parsed anew each time."""
        raw: dict[str, Any] = orjson.loads(self.text)
        return raw

    @property
    def questions(self) -> list[Question]:
        """All questions about the sample."""
        return [Question(self.key, part, request) for part, request in self.requests.items()]

    def find(self, journal: JournalReader) -> dict[str, Finished]:
        """The finished records, by part: those that split knew of, and later ones."""
        finished = {
            part: journal.find(self.key, part, request, self.done.get(part))
            for part, request in self.requests.items()
        }
        return {part: record for part, record in finished.items() if record is not None}

    def to_line(self) -> bytes:
        """The entry as a line of a chunk file."""
        requests: Any = self.requests
        done: Any = {part: list(location) for part, location in self.done.items()} or None
        if ONLY_PART in requests:
            requests, done = requests[ONLY_PART], done and done[ONLY_PART]
        return orjson.dumps([done, self.key, requests, orjson.Fragment(self.text)]) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ChunkEntry:
        """The entry of a line of a chunk file. The input object is not parsed."""
        head = _ONE_QUESTION.match(line)
        if head is not None:
            file, offset, is_error, key, request = head.groups()
            done = {}
            if file is not None:
                done[ONLY_PART] = Location(file.decode(), int(offset), is_error == b"true")
            requests = {ONLY_PART: request.decode()}
            return cls(orjson.loads(key), requests, line[head.end() : -len(_END)], done)
        locations, key, requests, raw = orjson.loads(line)
        done = {part: Location(*location) for part, location in (locations or {}).items()}
        return cls(key, requests, orjson.dumps(raw), done)


_PENDING = b"[null,"
"""The start of the line of a pending entry."""

# The location of its record, the key and the digest; the input object follows.
_ONE_QUESTION = re.compile(
    rb'\[(?:null|\["([^"\\]*)",(\d+),(true|false)\]),'
    rb'("[^"\\]*(?:\\.[^"\\]*)*"),"([0-9a-f]{32})",'
)
_END = b"]\n"


def entry_line(key: bytes, request: bytes, raw: bytes) -> bytes:
    """The line of a pending entry with one question; the fields ``key`` and ``raw`` are JSON."""
    return b'[null,%b,"%b",%b]\n' % (key, request, raw)


def finished_line(line: bytes, file: bytes, offset: int, is_error: bool) -> bytes:
    """The line of a pending entry with the location of its record; ``file`` is JSON already."""
    error = b"true" if is_error else b"false"
    return b"[[%b,%d,%b],%b" % (file, offset, error, line.removeprefix(_PENDING))


def read_lines(path: Path, num_files: int) -> Iterator[bytes]:
    """The lines of a file, one of ``num_files`` that are read at once; see :func:`line_blocks`."""
    for block in line_blocks(path, num_files):
        yield from BytesIO(block)  # A list of lines would take memory for all of them.


def line_blocks(path: Path, num_files: int) -> Iterator[bytes]:
    """The lines of a file, one of ``num_files`` that are read at once, in blocks of whole lines.

    The file does not stay open: there may be more ranks than files that a process may open.
    """
    block_bytes = max(min(_READ_AHEAD_BYTES // num_files, 1 << 18), 1 << 16)
    offset = 0
    while True:
        with open(path, "rb") as stream:
            stream.seek(offset)
            data = stream.read(block_bytes)
        if len(data) < block_bytes:
            yield data
            return
        end = data.rfind(b"\n") + 1
        if not end:  # One line is longer than the block.
            block_bytes *= 2
            continue
        offset += end
        yield data[:end]


_READ_AHEAD_BYTES = 1 << 26
_BLOCK_BYTES = 1 << 20
_NEWLINE = ord("\n")


def not_of_this_split(path: Path) -> UserError:
    """The error about a file that split did not write, or that has changed since."""
    fault = "not what split wrote there" if path.exists() else "missing"
    return UserError(f"{path}: {fault}; {SPLIT_AGAIN}. Nothing is inferred twice")


class Chunk:
    """The entries of a chunk file by position. Memory holds only their offsets, and processes that
    are forked may share one."""

    def __init__(self, path: Path, seal: Seal) -> None:
        """Raises :class:`UserError` if the file does not hold what ``seal`` says."""
        self.path = path
        self.seal = seal
        self._offsets = array("Q", [0])
        actual = EMPTY
        try:
            self._stream = open(path, "rb")
        except FileNotFoundError:
            raise not_of_this_split(path) from None
        while block := self._stream.read(_BLOCK_BYTES):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == _NEWLINE) + 1
            self._offsets.frombytes((ends + actual.num_bytes).astype(np.uint64).tobytes())
            actual = actual.extended(block)
        if actual != seal:
            raise not_of_this_split(path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __iter__(self) -> Iterator[ChunkEntry]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, position: int) -> ChunkEntry:
        begin, end = self._offsets[position], self._offsets[position + 1]
        return ChunkEntry.from_line(os.pread(self._stream.fileno(), end - begin, begin))
