"""The journal: what cost GPU time, one JSON line a record, and the only truth about what is done.

Each attempt of an inference job appends to a file of its own in the folder of the fingerprint::

    {"__journal": 1, "host": ..., "pid": ...}
    {"__key": ..., "__part": "", "__request": <digest>, "output_text": ..., "__usage": {...}}
    {"__key": ..., "__part": "", "__request": <digest>, "__error": {...}}
    {"__key": ..., "__part": "", "__request": <digest>, "__engine_died": true}

The last kind says that the engine died with this request in it; the sample is not finished. A part
names one of several questions about a sample (empty for the plain case). A record is written by one
``write`` call; a line that a crash tore off is ignored by every reader. An error is final until a
record in a file ``reopen.*`` names the file that holds it.

Only this module writes records.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from video_pipeline.errors import UserError
from video_pipeline.locks import holder

VERSION = 1

_TEXT = rb'"(?:[^"\\]|\\.)*"'
_RECORD = re.compile(
    rb'\{"__key":(' + _TEXT + rb'),"__part":(' + _TEXT + rb'),"__request":"([0-9a-f]{32})",'
    rb'"(output_text|__error|__engine_died|__reopens)":'
)


ATTEMPTS = "attempt."
REOPENS = "reopen."


def attempt_prefix(split_id: str, rank: int) -> str:
    """How the names of the journal files of one rank of one split start."""
    return f"{ATTEMPTS}{split_id}.rank{rank}."


def identity(key: str, part: str, request: str) -> bytes:
    """16 bytes that stand for (key, part, request digest)."""
    return _identity(orjson.dumps(key), orjson.dumps(part), request.encode())


def _identity(key: bytes, part: bytes, request: bytes) -> bytes:
    """Over the JSON forms, so that scanning a line decodes nothing; orjson writes both sides."""
    return hashlib.blake2b(b"\0".join((key, part, request)), digest_size=16).digest()


def clean_text(text: str) -> str:
    """``text`` with what UTF-8 cannot carry (halves of surrogate pairs, as in odd file names)
    written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class JournalWriter:
    """Appends records to a new file of its own, each by one ``write`` call. The file's name starts
    with ``prefix``: :func:`attempt_prefix`, or :data:`REOPENS`.

    Not for several threads at once. :meth:`sync` makes the records survive a power loss.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        self.path = folder / f"{prefix}{stamp}.jsonl"
        self._fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
        self._write({"__journal": VERSION, **holder()})

    def answer(
        self, key: str, part: str, request: str, output_text: str, usage: dict[str, Any]
    ) -> None:
        """Append what the model said. ``usage``: token counts and ``finish_reason``."""
        text = clean_text(output_text)
        self._record(key, part, request, {"output_text": text, "__usage": usage})

    def error(
        self, key: str, part: str, request: str, error: dict[str, str], **answered: Any
    ) -> None:
        """Append an error with ``stage``, ``type`` and ``message``; ``answered`` holds
        ``output_text`` and ``__usage`` where the model had answered."""
        error = {name: clean_text(text) for name, text in error.items()}
        self._record(key, part, request, {"__error": error, **answered})

    def engine_died(self, key: str, part: str, request: str) -> None:
        """Note that the engine died with this request in it."""
        self._record(key, part, request, {"__engine_died": True})

    def reopen(self, key: str, part: str, request: str, file: str) -> None:
        """Take back what journal file ``file`` holds against this sample: its error, or that the
        engine died with it."""
        self._record(key, part, request, {"__reopens": file})

    def _record(self, key: str, part: str, request: str, rest: dict[str, Any]) -> None:
        self._write({"__key": key, "__part": part, "__request": request, **rest})

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


@dataclass(frozen=True, slots=True)
class Location:
    """Where a record lies.

    Attributes:
        file: Name of the journal file.
        offset: Byte offset of its line.
        is_error: Whether it is an error record.
    """

    file: str
    offset: int
    is_error: bool


@dataclass
class JournalIndex:
    """Which (key, part, request digest) are finished, and where their records lie."""

    _files: list[str] = field(default_factory=list)
    # identity -> file number << 44 | offset << 1 | is_error: one integer instead of an object
    _places: dict[bytes, int] = field(default_factory=dict)
    # identity -> names of the files that say that the engine died with it
    _deaths: dict[bytes, list[str]] = field(default_factory=dict)
    # what was taken back: (identity, name of the journal file that holds it)
    _reopened: set[tuple[bytes, str]] = field(default_factory=set)
    # the files that are there: somebody may have removed some
    _present: frozenset[str] = frozenset()

    def find(
        self, key: str, part: str, request: str, known: Location | None = None
    ) -> Location | None:
        """Where the final record is, or None if the sample is still to be done.

        ``known`` is where the record lay when somebody looked earlier. An ok record beats an
        error record, and a reopened error counts for nothing.
        """
        name = identity(key, part, request)
        if known is not None and (
            known.file not in self._present
            or (known.is_error and (name, known.file) in self._reopened)
        ):
            known = None
        place = self._places.get(name)
        if place is None or (known is not None and not known.is_error):
            return known
        return Location(self._files[place >> 44], place >> 1 & (1 << 43) - 1, bool(place & 1))

    def deaths(self, key: str, part: str, request: str) -> list[str]:
        """The journal files that say that the engine died with this request in it."""
        return self._deaths.get(identity(key, part, request), [])

    @property
    def files(self) -> list[str]:
        """Names of the files that were there, indexed or not."""
        return sorted(self._present)

    def add(self, path: Path) -> None:
        """Index the records of one journal file."""
        if path.name.startswith(REOPENS):
            self._reopened |= {
                (_identity(match[1], match[2], match[3]), orjson.loads(match.string)["__reopens"])
                for _, match in _records(path)
            }
            return
        number = len(self._files)
        self._files.append(path.name)
        for offset, match in _records(path):
            name = _identity(match[1], match[2], match[3])
            known = self._places.get(name)
            if match[4] in (b"__error", b"__engine_died") and (name, path.name) in self._reopened:
                continue
            if match[4] == b"__engine_died":
                self._deaths.setdefault(name, []).append(path.name)
            elif match[4] == b"__error":
                if known is None:
                    self._places[name] = number << 44 | offset << 1 | 1
            elif known is None or known & 1:
                self._places[name] = number << 44 | offset << 1


def read_index(
    folder: Path, attempts: str = ATTEMPTS, others: Callable[[str], bool] | None = None
) -> JournalIndex:
    """Index the attempts in ``folder`` whose file name starts with ``attempts``, and those that
    ``others`` says yes to.

    Raises :class:`UserError` for a journal of a newer version.
    """
    index = JournalIndex()
    if folder.is_dir():
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".jsonl"))
        index._present = frozenset(names)
        # first what is taken back, so that no error of it is indexed
        for name in names:
            if name.startswith(REOPENS):
                index.add(folder / name)
        for name in names:
            if name.startswith(attempts) or (
                others is not None and name.startswith(ATTEMPTS) and others(name)
            ):
                index.add(folder / name)
    return index


def count_records(path: Path) -> Counter[str]:
    """How many records of each kind a journal file holds: ``output_text``, ``__error``,
    ``__engine_died`` and ``__reopens``."""
    return Counter(match[4].decode() for _, match in _records(path))


def _records(path: Path) -> Iterator[tuple[int, re.Match[bytes]]]:
    """(offset, match of the line's start) of every whole record of a journal file."""
    with open(path, "rb", buffering=1 << 20) as stream:
        first = stream.readline()
        _check_version(path, first)
        offset = len(first)
        for line in stream:
            # a second record on the line: a write was cut off and another followed
            if line.endswith(b"}\n") and line.rfind(b'{"__key":') == 0:
                match = _RECORD.match(line)
                if match:
                    yield offset, match
            offset += len(line)


def _check_version(path: Path, line: bytes) -> None:
    try:
        version = orjson.loads(line).get("__journal")
    except (orjson.JSONDecodeError, AttributeError):
        return  # torn off in its very first line: it holds no record either
    if isinstance(version, int) and version > VERSION:
        raise UserError(
            f"{path} was written by a newer version of video-pipeline (journal version {version}, "
            f"this one reads up to {VERSION}): update, or set another data.output_jsonl"
        )


class JournalReader:
    """Reads records at their :class:`Location`; keeps the files it has opened open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._streams: dict[str, BinaryIO] = {}

    def read(self, location: Location) -> dict[str, Any]:
        """The record at ``location``."""
        stream = self._streams.get(location.file)
        if stream is None:
            stream = self._streams[location.file] = open(self._folder / location.file, "rb")
        stream.seek(location.offset)
        return orjson.loads(stream.readline())

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams.values():
            stream.close()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
