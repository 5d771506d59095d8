"""Rank files: the finished records of a chunk, in its order. What consolidate needs to know of one
is written down beside its chunk, so that its records need not be parsed again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import zip_longest
from typing import Any, BinaryIO

import orjson

from video_pipeline.chunks import ChunkEntry, line_blocks, read_lines
from video_pipeline.errors import UserError
from video_pipeline.files import EMPTY, Seal, replacing, sync, write_text
from video_pipeline.journal import Location, split_of
from video_pipeline.layout import Layout
from video_pipeline.records import Record
from video_pipeline.run.manifest import Manifest

_BATCH = 1 << 8
_USAGE = ("prompt_tokens", "completion_tokens")
_COUNTED = ("errors_by_stage", "usage", "truncated", "splits")


@dataclass
class RankContents:
    """What a rank file holds.

    Attributes:
        split_id: The split that wrote its chunk.
        rank: The rank.
        samples: Records, one a line.
        seal: What their lines are.
        errors_by_stage: How many samples failed.
        usage: Tokens of all records.
        truncated: How many records have an answer that was cut off, by the setting that did it.
        splits: How many answers and errors were written by the attempts of each split.
    """

    split_id: str
    rank: int
    samples: int = 0
    seal: Seal = EMPTY
    errors_by_stage: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_USAGE, 0)))
    truncated: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, layout: Layout, rank: int) -> RankContents | None:
        """What was written down about the rank file of ``rank``, None if nothing can be read."""
        try:
            values = json.loads(layout.contents(rank).read_text(encoding="utf-8"))
            counted = {name: Counter(values[name]) for name in _COUNTED}
            return cls(**{**values, **counted, "seal": Seal(*values["seal"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


class RankFileWriter:
    """Writes records to a rank file and counts them in ``contents``."""

    def __init__(self, stream: BinaryIO, contents: RankContents) -> None:
        self._stream = stream
        self._contents = contents
        self._lines: list[bytes] = []

    def write(self, record: Record, places: Iterable[Location]) -> None:
        """Append a record that was made of what lies at ``places`` in the journal."""
        contents = self._contents
        self._lines.append(record.line)
        if len(self._lines) == _BATCH:
            self.flush()
        contents.samples += 1
        if record.error is not None:
            contents.errors_by_stage[record.error["stage"]] += 1
        if record.usage:
            for name in _USAGE:
                contents.usage[name] += record.usage[name]
        if record.cut_off:
            contents.truncated[record.cut_off] += 1
        contents.splits.update(split_of(place.file) for place in places)

    def flush(self) -> None:
        """Write what was appended."""
        data = b"".join(self._lines)
        self._lines.clear()
        self._stream.write(data)
        self._contents.seal = self._contents.seal.extended(data)


@contextmanager
def writing(layout: Layout, rank: int, split_id: str) -> Iterator[RankFileWriter]:
    """Write the rank file of ``rank``. It takes its place when the block ends well, after what it
    holds was written down."""
    contents, path = RankContents(split_id, rank), layout.rank_file(rank)
    with replacing(path) as stream:
        writer = RankFileWriter(stream, contents)
        yield writer
        writer.flush()
        sync(stream)
        path.unlink(missing_ok=True)  # rather none than one that was not written down
        write_text(layout.contents(rank), json.dumps(vars(contents)) + "\n")


class RankFile:
    """A rank file to be consolidated.

    Attributes:
        contents: What it holds.
    """

    def __init__(self, layout: Layout, manifest: Manifest, rank: int) -> None:
        """Raises :class:`UserError` where it was not written for the chunks of ``manifest``."""
        self._layout, self._rank, self._manifest = layout, rank, manifest
        self._num_ranks = manifest.num_shards
        contents = RankContents.read(layout, rank)
        if (
            contents is None
            or (contents.split_id, contents.rank) != (manifest.split_id, rank)
            or contents.samples != manifest.rank_samples[rank]
            or not layout.rank_file(rank).exists()
        ):
            raise self._fault()
        self.contents = contents

    def lines(self, failed: BinaryIO) -> Iterator[bytes]:
        """Its records, one after the other; those of failed samples go to ``failed``, too.

        Raises :class:`UserError` at its end if it is not what ``infer`` wrote.
        """
        lines = self._lines()
        if not self.contents.errors_by_stage:
            return lines
        return self._noting(lines, failed)

    def _lines(self) -> Iterator[bytes]:
        seal = EMPTY
        for block in line_blocks(self._layout.rank_file(self._rank), self._num_ranks):
            seal = seal.extended(block)
            yield from BytesIO(block)  # one line at a time takes the room of the one before
        if seal != self.contents.seal:
            raise self._fault()

    def _noting(self, lines: Iterator[bytes], failed: BinaryIO) -> Iterator[bytes]:
        for line in lines:
            if _ERROR in line and _parse(line).get("__status") == "error":
                failed.write(line)
            yield line

    def _fault(self) -> UserError:
        """What is wrong with the file, found by comparing it with its chunk."""
        path = self._layout.rank_file(self._rank)
        if not path.exists():
            return UserError(f"{path} is missing; run snakemake again, nothing is inferred twice")
        self._manifest.check_chunk(self._layout, self._rank)
        entries = read_lines(self._layout.chunk(self._rank), self._num_ranks)
        what = ": not what was written there"
        for number, (entry, line) in enumerate(
            zip_longest(entries, read_lines(path, self._num_ranks)), start=1
        ):
            key = entry and ChunkEntry.from_line(entry).key
            found = line and _parse(line).get("__key", line[:40])
            if key != found:
                expected = "the end of the file" if entry is None else f"sample {key!r}"
                got = "the end of the file" if line is None else repr(found)
                what = f", line {number}: expected {expected}, found {got}"
                break
        return UserError(
            f"{path}{what}. Remove this rank file and run snakemake again; nothing is inferred "
            "twice"
        )


_ERROR = b',"__status":"error",'


def _parse(line: bytes) -> dict[str, Any]:
    """The record of a line, empty if it holds none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
