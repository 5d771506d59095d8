"""The journal: what cost GPU time, one JSON line a record, and the only truth about what is done.

Each attempt of an inference job appends to a file of its own in the folder of the fingerprint::

    {"__journal": 1, "host": ..., "pid": ...}
    {"__key": ..., "__part": "", "__request": <digest>, "output_text": ..., "__usage": {...}}
    {"__key": ..., "__part": "", "__request": <digest>, "__error": {...}}
    {"__key": ..., "__part": "", "__request": <digest>, "__engine_died": true}

Beside it lies what the attempt spent (:class:`video_pipeline.statistics.StatisticsFile`).

The last kind says that the engine died with this request in it; the sample is not finished. A part
names one of several questions about a sample (empty for the plain case). A record is written by one
``write`` call; a line that a crash tore off is ignored by every reader. An error is final until a
record in a file ``reopen.*`` names the file that holds it.

Only this module writes records.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import time
import uuid
from array import array
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson

from video_pipeline.errors import UserError
from video_pipeline.files import make_folder, sync_folder
from video_pipeline.locks import holder

logger = logging.getLogger(__name__)

VERSION = 1

_KEY = b'{"__key":'
_REQUEST = b'","__request":"'
# from the start of _REQUEST to the end of the digest's 32 hex digits
_TO_END_OF_HEAD = len(_REQUEST) + 32

ATTEMPTS = "attempt."
REOPENS = "reopen."


def attempt_prefix(split_id: str, rank: int) -> str:
    """How the names of the journal files of one rank of one split start."""
    return f"{ATTEMPTS}{split_id}.rank{rank}."


def split_of(file: str) -> str:
    """The split that an attempt worked on, from the name of one of its files."""
    return file.removeprefix(ATTEMPTS).partition(".")[0]


def identity(key: str, part: str, request: str) -> bytes:
    """16 bytes that stand for (key, part, request digest)."""
    return identity_of_json(orjson.dumps(key), orjson.dumps(part), request.encode())


def identity_of_json(key: bytes, part: bytes, request: bytes) -> bytes:
    """:func:`identity` of a key and a part that are JSON already."""
    return _identity(_head(key, part, request))


def _head(key: bytes, part: bytes, request: bytes) -> bytes:
    """How the line of a record starts; ``key`` and ``part`` are JSON already."""
    return b'{"__key":%b,"__part":%b,"__request":"%b' % (key, part, request)


def _identity(head: bytes) -> bytes:
    """Over a record's line up to the end of the digest, so that scanning a line decodes nothing;
    orjson writes both sides."""
    return blake2b(head, digest_size=16).digest()


def clean_text(text: str) -> str:
    """``text`` with what UTF-8 cannot carry (halves of surrogate pairs, as in odd file names)
    written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _answered(
    output_text: str, usage: dict[str, Any], reasoning: str | None = None, damaged: bool = False
) -> dict[str, Any]:
    record = {"output_text": clean_text(output_text), "__usage": usage}
    if reasoning is not None:
        record["__reasoning"] = clean_text(reasoning)
    if damaged:
        record["damaged"] = True
    return record


class JournalWriter:
    """Appends records to a new file of its own, each by one ``write`` call. The file's name starts
    with ``prefix``: :func:`attempt_prefix`, or :data:`REOPENS`.

    Not for several threads at once. :meth:`sync` makes the records survive a power loss.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
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
        output_text: str,
        usage: dict[str, Any],
        reasoning: str | None = None,
        damaged: bool = False,
    ) -> None:
        """Append what the model said, and thought before if it is one that thinks. ``usage``: token
        counts and ``finish_reason``; ``damaged``: whether a video of the sample is."""
        self._record(key, part, request, _answered(output_text, usage, reasoning, damaged))

    def error(
        self, key: str, part: str, request: str, error: dict[str, str], **answered: Any
    ) -> None:
        """Append an error with ``stage``, ``type`` and ``message``; where the model had answered,
        ``answered`` are further arguments of :meth:`answer`."""
        error = {name: clean_text(text) for name, text in error.items()}
        more = _answered(**answered) if answered else {}
        self._record(key, part, request, {"__error": error, **more})

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


class Location(NamedTuple):
    """Where a record lies.

    Attributes:
        file: Name of the journal file.
        offset: Byte offset of its line.
        is_error: Whether it is an error record.
    """

    file: str
    offset: int
    is_error: bool


NOWHERE = (1 << 64) - 1
"""The place of a record that is not there."""

_FILE_SHIFT = 44
_BATCH = 1 << 16


class JournalIndex:
    """Which (key, part, request digest) are finished, and where their records lie.

    A record takes 20 bytes: its *place* (file number << 44 | offset << 1 | is_error), 32 bits of
    its identity, and in one sorted array as many other bits of the identity as leave room for the
    record's number.

    Attributes:
        indexed: Names of the files that were indexed, by their number.
    """

    def __init__(self) -> None:
        self.indexed: list[str] = []
        # identity -> names of the files that say that the engine died with it
        self._deaths: dict[bytes, list[str]] = {}
        # what was taken back: (identity, name of the journal file that holds it)
        self._reopened: set[tuple[bytes, str]] = set()
        # the files that are there: somebody may have removed some
        self._present: frozenset[str] = frozenset()
        self._sorted, self._checks, self._places = array("Q"), array("I"), array("Q")
        self._number_mask = 0

    def find(
        self, key: str, part: str, request: str, known: Location | None = None
    ) -> Location | None:
        """Where the final record is, or None if the sample is still to be done.

        ``known`` is where the record lay when somebody looked earlier. An ok record beats an
        error record, and a reopened error counts for nothing.
        """
        if known is not None and known.file not in self._present:
            known = None
        if known is None or known.is_error:
            name = identity(key, part, request)
            if known is not None and (name, known.file) in self._reopened:
                known = None
            place = self._find(name)
            if place != NOWHERE:
                return location_at(place, self.indexed)
        return known

    def find_all(self, identities: bytes) -> np.ndarray:
        """The places of the final records of many identities, 16 bytes each; :data:`NOWHERE` for
        those that are still to be done."""
        names = np.frombuffer(identities, np.uint64).reshape(-1, 2)
        found = np.full(len(names), NOWHERE, np.uint64)
        if not len(self._sorted):
            return found
        ordered, checks, places = map(np.asarray, (self._sorted, self._checks, self._places))
        mask = np.uint64(self._number_mask)
        order = np.argsort(names[:, 0])  # neighbours in memory are found faster
        last, check = names[order, 0] | mask, names[order, 1].astype(np.uint32)
        at = np.searchsorted(ordered, last, "right") - 1
        while len(order):
            candidates = ordered[at]
            numbers = candidates & mask
            is_it = (checks[numbers] == check) & (candidates | mask == last) & (at >= 0)
            found[order[is_it]] = places[numbers[is_it]]
            # another identity may share the sorted bits
            go_on = ~is_it & (candidates | mask == last) & (at > 0)
            order, last, check, at = order[go_on], last[go_on], check[go_on], at[go_on] - 1
        return found

    def deaths(self, key: str, part: str, request: str) -> list[str]:
        """The journal files that say that the engine died with this request in it."""
        return self._deaths.get(identity(key, part, request), []) if self._deaths else []

    def __len__(self) -> int:
        """Finished records; one of a sample that has several counts as often."""
        return len(self._sorted)

    @property
    def files(self) -> list[str]:
        """Names of the files that were there, indexed or not."""
        return sorted(self._present)

    def _find(self, name: bytes) -> int:
        first, check = int.from_bytes(name[:8], sys.byteorder), name[8:12]
        last = first | self._number_mask
        at = bisect_right(self._sorted, last) - 1
        while at >= 0 and self._sorted[at] | self._number_mask == last:
            number = self._sorted[at] & self._number_mask
            if self._checks[number] == int.from_bytes(check, sys.byteorder):
                return self._places[number]
            at -= 1
        return NOWHERE

    def _add_reopens(self, path: Path) -> None:
        for _, line, head_end in _records(path):
            if file := _REOPENED_FILE.match(line, head_end):
                self._reopened.add((_identity(line[:head_end]), file[1].decode()))

    def _add_attempt(self, path: Path, checked: bool) -> None:
        shifted = len(self.indexed) << _FILE_SHIFT
        self.indexed.append(path.name)
        names, places = bytearray(), array("Q")
        for offset, line, head_end in _records(path):
            is_error = False
            if not line.startswith(_OUTPUT_TEXT, head_end):
                is_error = True
                name = _identity(line[:head_end])
                if (name, path.name) in self._reopened:
                    continue
                if line.startswith(_ENGINE_DIED, head_end):
                    self._deaths.setdefault(name, []).append(path.name)
                    continue
            if checked and _parse(line) is None:
                continue
            names += _identity(line[:head_end])
            places.append(shifted | offset << 1 | is_error)
            if len(places) == _BATCH:
                self._append(names, places)
                names, places = bytearray(), array("Q")
        self._append(names, places)

    def _append(self, names: bytearray, places: array) -> None:
        columns = np.frombuffer(names, np.uint64).reshape(-1, 2)
        self._sorted.frombytes(columns[:, 0].tobytes())
        self._checks.frombytes(columns[:, 1].astype(np.uint32).tobytes())
        self._places.extend(places)

    def _sort(self) -> None:
        """Make the index ready to be asked."""
        count = len(self._sorted)
        self._number_mask = (1 << count.bit_length()) - 1
        mask, ordered = np.uint64(self._number_mask), np.asarray(self._sorted)
        ordered |= mask
        for begin in range(0, count, _BATCH):
            end = min(begin + _BATCH, count)
            ordered[begin:end] ^= mask ^ np.arange(begin, end, dtype=np.uint64)
        ordered.sort()
        self._settle(ordered, mask)

    def _settle(self, ordered: np.ndarray, mask: np.uint64) -> None:
        """Where an identity has several records, let the last that is found be the one that
        counts: the first answer, or else the first error."""
        same = np.zeros(len(ordered), bool)
        for begin in range(0, len(ordered) - 1, _BATCH):
            bits = ordered[begin : begin + _BATCH + 1] | mask
            same[begin + 1 : begin + len(bits)] = bits[1:] == bits[:-1]
        best: dict[int, int] = {}  # check -> place, of the records that share the sorted bits
        for at in np.flatnonzero(same):
            if not same[at - 1]:
                best.clear()
                self._improve(best, int(ordered[at - 1] & mask))
            self._improve(best, int(ordered[at] & mask))

    def _improve(self, best: dict[int, int], number: int) -> None:
        check, place = self._checks[number], self._places[number]
        known = best.get(check)
        if known is not None and (place & 1 or not known & 1):
            place = self._places[number] = known
        best[check] = place


def location_at(place: int, files: list[str]) -> Location:
    """The location of a place that :meth:`JournalIndex.find_all` gave; ``files`` are the
    index's."""
    offset = place >> 1 & (1 << _FILE_SHIFT - 1) - 1
    return Location(files[place >> _FILE_SHIFT], offset, bool(place & 1))


def read_index(
    folder: Path,
    attempts: str = ATTEMPTS,
    others: Callable[[str], bool] | None = None,
    *,
    checked: bool = False,
) -> JournalIndex:
    """Index the attempts in ``folder`` whose file name starts with ``attempts``, and those that
    ``others`` says yes to. With ``checked`` each record is parsed, and one that is not whole, as
    an edit may leave it, is passed over.

    Raises :class:`UserError` for a journal of a newer version.
    """
    index = JournalIndex()
    if folder.is_dir():
        names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".jsonl"))
        index._present = frozenset(names)
        # first what is taken back, so that no error of it is indexed
        for name in names:
            if name.startswith(REOPENS):
                index._add_reopens(folder / name)
        for name in names:
            if name.startswith(attempts) or (
                others is not None and name.startswith(ATTEMPTS) and others(name)
            ):
                index._add_attempt(folder / name, checked)
        index._sort()
    return index


def count_records(path: Path) -> Counter[str]:
    """How many records of each kind a journal file holds: ``output_text``, ``__error``,
    ``__engine_died`` and ``__reopens``."""
    kinds = Counter(
        line[head_end + 3 : line.find(b'"', head_end + 3)] for _, line, head_end in _records(path)
    )
    return Counter({kind.decode(): count for kind, count in kinds.items()})


def count_answers(folder: Path) -> int:
    """How many records of answers the journal in ``folder`` holds."""
    return sum(count_records(path)["output_text"] for path in folder.glob(f"{ATTEMPTS}*.jsonl"))


_OUTPUT_TEXT = b'","output_text":'
_ERROR = b'","__error":'
_REOPENED_FILE = re.compile(rb'","__reopens":"([^"\\]+)"\}')
_ENGINE_DIED = b'","__engine_died":'


def _records(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """(offset, line, length of its head) of every whole record of a journal file. The head ends
    with the request digest."""
    with open(path, "rb", buffering=1 << 20) as stream:
        first = stream.readline()
        _check_version(path, first)
        offset = len(first)
        for line in stream:
            # a second record on the line: a write was cut off and another followed
            if line.endswith(b"}\n") and line.rfind(_KEY) == 0:
                # no text can hold these bytes: its quotes are escaped
                at = line.find(_REQUEST)
                if at > 0:
                    yield offset, line, at + _TO_END_OF_HEAD
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


class Finished(NamedTuple):
    """A final record, and where it lies."""

    place: Location
    record: dict[str, Any]


class JournalReader:
    """Finds and reads the final records of samples; keeps the files it read last open.

    A file may have been edited, restored or removed since it was indexed. So each record is
    compared with what is asked for. From the first that does not match on, the whole journal is
    looked through, and what is nowhere in it counts as missing.
    """

    def __init__(self, folder: Path, index: JournalIndex) -> None:
        self._folder = folder
        self._index = index
        self._whole: JournalIndex | None = None
        self._num_moved = 0
        self._streams: OrderedDict[str, BinaryIO] = OrderedDict()

    def find(
        self, key: str, part: str, request: str, known: Location | None = None
    ) -> Finished | None:
        """The final record, or None if the sample is still to be done; arguments as in
        :meth:`JournalIndex.find`."""
        place = self._index.find(key, part, request, known)
        if place is None:
            return None
        head = _head(orjson.dumps(key), orjson.dumps(part), request.encode())
        record = self._read(place, head)
        if record is not None:
            return Finished(place, record)
        if self._whole is None:
            self.close()  # another file may have the name
            self._whole = read_index(self._folder, checked=True)
        elsewhere = self._whole.find(key, part, request)
        record = None if elsewhere is None else self._read(elsewhere, head)
        self._warn(
            place, key, part, "it counts as missing" if record is None else "another one is used"
        )
        return None if record is None else Finished(elsewhere, record)

    def _read(self, place: Location, head: bytes) -> dict[str, Any] | None:
        """The record at ``place``, None if there is none that begins with ``head``."""
        try:
            stream = self._open(place.file)
        except FileNotFoundError:
            return None
        stream.seek(place.offset)
        line = stream.readline()
        kind = _ERROR if place.is_error else _OUTPUT_TEXT
        return _parse(line) if line.startswith(kind, len(head)) and line.startswith(head) else None

    def _open(self, name: str) -> BinaryIO:
        stream = self._streams.get(name)
        if stream is None:
            if len(self._streams) == _MOST_OPEN:
                self._streams.popitem(last=False)[1].close()
            stream = self._streams[name] = open(self._folder / name, "rb", buffering=_READ_AHEAD)
        else:
            self._streams.move_to_end(name)
        return stream

    def _warn(self, place: Location, key: str, part: str, what: str) -> None:
        self._num_moved += 1
        if self._num_moved <= _MOST_SHOWN:
            logger.warning(
                "%s, byte %d: no record of sample %s%s is there any more; %s",
                self._folder / place.file,
                place.offset,
                key,
                f", {part}" if part else "",
                what,
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
        if self._num_moved > _MOST_SHOWN:
            logger.warning("... and %d more", self._num_moved - _MOST_SHOWN)


_MOST_SHOWN = 20
_READ_AHEAD = 1 << 16  # records are mostly asked for in the order in which they lie
_MOST_OPEN = 32
"""Journal files; a process may have 1,024 files open on most systems, 256 on some."""


def _parse(line: bytes) -> dict[str, Any] | None:
    """The answer or the error in ``line``, None if it is not whole."""
    try:
        record = orjson.loads(line)
        error = record.get("__error")
        if error is not None and not all(type(error[name]) is str for name in _ERROR_FIELDS):
            return None
        if error is not None and "__usage" not in record:
            return record
        usage = record["__usage"]
        is_whole = (
            type(record["output_text"]) is type(usage["finish_reason"]) is str
            and type(usage["prompt_tokens"]) is type(usage["completion_tokens"]) is int
        )
    except (ValueError, LookupError, TypeError):
        return None
    return record if is_whole else None


_ERROR_FIELDS = ("stage", "type", "message")
