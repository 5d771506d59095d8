"""Keeps what split knows of the entries of the input in files, and finds duplicates."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson

from video_pipeline.run.chunks import ChunkEntry
from video_pipeline.samples.identity import content_key
from video_pipeline.samples.input import BadLines
from video_pipeline.split.balance import BATCH, sorted_with_positions


class EntryTable:
    """A table of the entries of the input, in files: the entries themselves as lines of a chunk,
    and columns of numbers. In memory they would take most of the room of split."""

    COLUMNS: ClassVar = {
        "sizes": np.uint32,  # Bytes of the entry.
        "lines": np.uint32,  # The number of its line in the input.
        "hashes": np.uint32,  # The hash of its key.
        "places": np.uint64,  # Its place in the journal.
        "weights": np.float32,
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.entries = folder / "entries.jsonl"  # In the order of the input, with duplicates.

    @contextmanager
    def writing(self) -> Iterator[Callable[..., None]]:
        """Yield a function that appends entries, with an array for each column."""
        with ExitStack() as stack:
            entries = stack.enter_context(open(self.entries, "wb"))
            files = {
                name: stack.enter_context(open(self._folder / name, "wb")) for name in self.COLUMNS
            }

            def append(new_entries: bytes, **columns: Any) -> None:
                entries.write(new_entries)
                for name, column in columns.items():
                    files[name].write(np.asarray(column, self.COLUMNS[name]).data)

            yield append

    def read(self, name: str, begin: int = 0, count: int = -1) -> np.ndarray:
        """``count`` values of a column from ``begin`` on; all by default."""
        kind = np.dtype(self.COLUMNS[name])
        return np.fromfile(self._folder / name, kind, count, offset=begin * kind.itemsize)

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder)


def find_duplicates(table: EntryTable, bad: BadLines, video_field: str) -> np.ndarray:
    """A mask of the entries that repeat another one. A key with two contents is added to ``bad``.

    If hashes are equal the keys are compared, so that no hash decides. Of two entries with the same
    key the earlier one stays; but if only one of them is left out, the other stays.
    """
    pairs = sorted_with_positions(table.read("hashes"))
    is_duplicate = np.zeros(len(pairs), bool)
    again = np.zeros(len(pairs), bool)  # Whether the hash is that of the pair before.
    for begin in range(0, len(pairs), BATCH):
        hashes = pairs[begin : begin + BATCH + 1] >> np.uint64(32)
        again[begin + 1 : begin + len(hashes)] = hashes[1:] == hashes[:-1]
    suspects = np.flatnonzero(again)
    if not len(suspects):
        return is_duplicate
    line_numbers, sizes = table.read("lines"), table.read("sizes")
    ends = np.cumsum(sizes, dtype=np.uint64)
    with open(table.entries, "rb") as entries:

        def read(place: int) -> tuple[int, bytes]:
            position = int(pairs[place] & np.uint64(0xFFFFFFFF))
            size = int(sizes[position])
            return position, os.pread(entries.fileno(), size, int(ends[position]) - size)

        first: dict[str, tuple[int, bytes]] = {}  # By key, among those that share a hash.
        for place in suspects.tolist():
            if not again[place - 1]:
                position, line = read(place - 1)
                first = {_key(line): (position, line)}
            position, line = read(place)
            key = _key(line)
            known, earlier = first.setdefault(key, (position, line))
            if known == position:
                continue
            if line.startswith(_RECORD):
                is_duplicate[position] = True
            elif earlier.startswith(_RECORD):
                is_duplicate[known] = True
                first[key] = (position, line)
            else:
                is_duplicate[position] = True
                if not _same_content(line, earlier, video_field):
                    bad.add(
                        int(line_numbers[position]),
                        f"id {key!r:.80} stands on line {line_numbers[known]} with other content",
                    )
    return is_duplicate


_RECORD = b"{"
"""The start of an entry that is left out: it is its record. The others are lines of a chunk."""


def _key(line: bytes) -> str:
    if line.startswith(_RECORD):
        key: str = orjson.loads(line)["__key"]
        return key
    return ChunkEntry.from_line(line).key


def _same_content(line: bytes, other: bytes, video_field: str) -> bool:
    if line == other:
        return True
    first, second = ChunkEntry.from_line(line).raw, ChunkEntry.from_line(other).raw
    return content_key(first, video_field) == content_key(second, video_field)
