"""The index of a journal: it tells which questions are finished, and where their records lie."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from video_pipeline.journal.format import (
    ATTEMPTS,
    ENGINE_DIED,
    OUTPUT_TEXT,
    REOPENED_FILE,
    REOPENS,
    head_id,
    parse_record,
    record_id,
    scan,
)


class Location(NamedTuple):
    """Where a record lies (the name of the journal file and the byte offset of its line), and
    whether it is an error record."""

    file: str
    offset: int
    is_error: bool


NO_RECORD = (1 << 64) - 1
"""The place of a record that does not exist."""

# A place is a location in 64 bits: is_error << 63 | number of the file << 43 | offset.
_IS_ERROR = 63
_FILE = 43

# A row is the id of a record (16 bytes) and its place (8 bytes), both big-endian. So rows that are
# sorted as text are sorted by id, and the first row of an id is the record that counts.
_ROW = np.dtype("S24")
_FIRST_PLACE = bytes(8)

_BATCH = 1 << 14


def location_at(place: int, files: Sequence[str]) -> Location:
    """The location of a place that :meth:`JournalIndex.find_all` gave; ``files`` are
    :attr:`JournalIndex.indexed`."""
    file = files[place >> _FILE & (1 << _IS_ERROR - _FILE) - 1]
    return Location(file, place & (1 << _FILE) - 1, bool(place >> _IS_ERROR))


class JournalIndex:
    """Which questions (key, part, request digest) are finished, and where their records lie. A
    record takes 24 bytes.

    Of several records of a question, the first answer counts, or else the first error.
    """

    def __init__(self) -> None:
        self.indexed: list[str] = []  # Names of the files that were indexed, by their number.
        # All files of the folder. Somebody may have removed some since an earlier look.
        self._present: frozenset[str] = frozenset()
        # Record id -> names of the files that say that the engine died with it.
        self._deaths: dict[bytes, list[str]] = {}
        # Record id and the name of the file that holds the record that was taken back.
        self._reopened: set[tuple[bytes, str]] = set()
        self._buffer = bytearray()
        self._rows = np.empty(0, _ROW)

    def find(
        self, key: str, part: str, request: str, known: Location | None = None
    ) -> Location | None:
        """Where the final record is; None if the question is still open.

        ``known`` is where the record lay at an earlier look. An ok record beats an error record,
        and a reopened error does not count.
        """
        if known is not None and known.file not in self._present:
            known = None
        if known is None or known.is_error:
            sought = record_id(key, part, request)
            if known is not None and (sought, known.file) in self._reopened:
                known = None
            row = np.frombuffer(sought + _FIRST_PLACE, _ROW)
            begin = _ROW.itemsize * int(self._rows.searchsorted(row)[0])
            candidate = self._buffer[begin : begin + _ROW.itemsize]
            if candidate.startswith(sought):
                return location_at(int.from_bytes(candidate[len(sought) :]), self.indexed)
        return known

    def find_all(self, record_ids: bytes) -> np.ndarray:
        """The places of the final records of many questions: a uint64 for each :func:`record_id`
        (16 bytes) in ``record_ids``; :data:`NO_RECORD` if the question is still open."""
        ids = np.frombuffer(record_ids, ">u8").reshape(-1, 2)
        places = np.full(len(ids), NO_RECORD, np.uint64)
        if not len(self._rows):
            return places
        order = np.argsort(ids[:, 0].astype(np.uint64))  # Lookups of neighbours are faster.
        sought = np.zeros((len(ids), 3), ">u8")
        sought[:, :2] = ids[order]
        positions = self._rows.searchsorted(sought.view(_ROW)[:, 0])
        rows = self._rows.take(positions, mode="clip").view(">u8").reshape(-1, 3)
        is_found = (rows[:, 0] == sought[:, 0]) & (rows[:, 1] == sought[:, 1])
        places[order[is_found]] = rows[is_found, 2]
        return places

    def deaths(self, key: str, part: str, request: str) -> list[str]:
        """The journal files that say that the engine died with this request in it."""
        return self._deaths.get(record_id(key, part, request), []) if self._deaths else []

    def __len__(self) -> int:
        """The number of final records; a question may have several."""
        return len(self._rows)

    @property
    def files(self) -> list[str]:
        """Names of the files in the folder, indexed or not."""
        return sorted(self._present)

    def _add_reopens(self, path: Path) -> None:
        for _, line, head_end in scan(path):
            if file := REOPENED_FILE.match(line, head_end):
                self._reopened.add((head_id(line[:head_end]), file[1].decode()))

    def _add_attempt(self, path: Path, checked: bool) -> None:
        answers = len(self.indexed) << _FILE
        errors = answers | 1 << _IS_ERROR
        self.indexed.append(path.name)
        ids, places = bytearray(), array("Q")
        for offset, line, head_end in scan(path):
            id_ = head_id(line[:head_end])
            first_place = answers
            if not line.startswith(OUTPUT_TEXT, head_end):
                first_place = errors
                if (id_, path.name) in self._reopened:
                    continue
                if line.startswith(ENGINE_DIED, head_end):
                    self._deaths.setdefault(id_, []).append(path.name)
                    continue
            if checked and parse_record(line) is None:
                continue
            ids += id_
            places.append(first_place | offset)
            if len(places) == _BATCH:
                self._append(ids, places)
                ids, places = bytearray(), array("Q")
        self._append(ids, places)

    def _append(self, ids: bytearray, places: array[int]) -> None:
        rows = np.empty((len(places), 3), ">u8")
        rows[:, :2] = np.frombuffer(ids, ">u8").reshape(-1, 2)
        rows[:, 2] = places
        self._buffer += rows.data

    def _sort(self) -> None:
        """Make the index ready for lookups."""
        self._rows = np.frombuffer(self._buffer, _ROW)
        self._rows.sort()


def read_index(
    folder: Path,
    attempts: str = ATTEMPTS,
    others: Callable[[str], bool] | None = None,
    *,
    checked: bool = False,
) -> JournalIndex:
    """Index the journal in ``folder``; a folder that does not exist is an empty journal.

    Args:
        attempts: The start of the names of the attempts to index.
        others: Says by name which other attempts to index.
        checked: Whether to parse each record, and to pass over those that an edit has damaged.

    Raises :class:`UserError` for a journal of a newer version.
    """
    index = JournalIndex()
    if not folder.is_dir():
        return index
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(".jsonl"))
    index._present = frozenset(names)
    # The reopened errors come first, so that they are not indexed.
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
