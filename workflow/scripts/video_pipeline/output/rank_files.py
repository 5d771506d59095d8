"""Rank files: the finished records of a chunk, in its order.

A file beside the chunk holds what consolidate needs to know of them (:class:`RankContents`), so
that it need not parse them again.
"""

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

from video_pipeline.common.files import EMPTY, Seal, replacing, sync, write_text
from video_pipeline.errors import UserError
from video_pipeline.journal.format import split_of
from video_pipeline.journal.index import Location
from video_pipeline.output.records import Record
from video_pipeline.run.chunks import ChunkEntry, line_blocks, read_lines
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest

_BATCH = 1 << 8
_ERROR = b',"__status":"error",'
_USAGE = ("prompt_tokens", "completion_tokens")
_COUNTERS = ("errors_by_stage", "usage", "truncated", "splits")


@dataclass
class RankContents:
    """A description of a rank file."""

    split_id: str  # That of the split that wrote its chunk.
    rank: int
    samples: int = 0  # Records, one a line.
    seal: Seal = EMPTY
    errors_by_stage: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_USAGE, 0)))
    truncated: Counter[str] = field(default_factory=Counter)  # By the setting that cut them off.
    splits: Counter[str] = field(default_factory=Counter)  # Answers and errors by split.
    # An earlier version did not count these.
    damaged: int = 0  # Answers about damaged videos.
    stay_cut_off: int = 0  # Errors of stage length that the journal has only as answers.

    @classmethod
    def read(cls, layout: Layout, rank: int) -> RankContents | None:
        """The description of the rank file of ``rank``; None if it cannot be read."""
        try:
            values = json.loads(layout.contents(rank).read_text(encoding="utf-8"))
            counters = {name: Counter(values[name]) for name in _COUNTERS}
            return cls(**{**values, **counters, "seal": Seal(*values["seal"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


class RankFileWriter:
    """Writes records to a rank file and counts them in ``contents``."""

    def __init__(self, stream: BinaryIO, contents: RankContents) -> None:
        self._stream = stream
        self._contents = contents
        self._lines: list[bytes] = []

    def write(self, record: Record, locations: Iterable[Location]) -> None:
        """Append a record that was made from the journal's records at ``locations``."""
        contents = self._contents
        self._lines.append(record.line)
        if len(self._lines) == _BATCH:
            self.flush()
        contents.samples += 1
        locations = list(locations)
        if record.error is not None:
            stage = record.error["stage"]
            contents.errors_by_stage[stage] += 1
            contents.stay_cut_off += stage == "length" and not any(at.is_error for at in locations)
        if record.usage:
            for name in _USAGE:
                contents.usage[name] += record.usage[name]
            if sound := record.usage.get("sound_tokens"):
                contents.usage["sound_tokens"] += sound
        if record.cut_off:
            contents.truncated[record.cut_off] += 1
        contents.damaged += record.damaged
        contents.splits.update(split_of(location.file) for location in locations)

    def flush(self) -> None:
        """Write the appended records."""
        data = b"".join(self._lines)
        self._lines.clear()
        self._stream.write(data)
        self._contents.seal = self._contents.seal.extended(data)


@contextmanager
def writing(layout: Layout, rank: int, split_id: str) -> Iterator[RankFileWriter]:
    """Write the rank file of ``rank``. It appears when the block ends well, after its contents."""
    contents, path = RankContents(split_id, rank), layout.rank_file(rank)
    with replacing(path) as stream:
        writer = RankFileWriter(stream, contents)
        yield writer
        writer.flush()
        sync(stream)
        # If this is killed here, no rank file is better than a file with a wrong description.
        path.unlink(missing_ok=True)
        write_text(layout.contents(rank), json.dumps(vars(contents)) + "\n")


class RankFile:
    """A rank file, as consolidate reads it."""

    def __init__(self, layout: Layout, manifest: Manifest, rank: int) -> None:
        """Raises :class:`UserError` if it was not written for the chunks of ``manifest``."""
        self._layout, self._manifest, self._rank = layout, manifest, rank
        self._path = layout.rank_file(rank)
        contents = RankContents.read(layout, rank)
        if (
            contents is None
            or (contents.split_id, contents.rank) != (manifest.split_id, rank)
            or contents.samples != manifest.rank_samples[rank]
            or not self._path.exists()
        ):
            raise self._fault()
        self.contents = contents

    def lines(self, failed: BinaryIO) -> Iterator[bytes]:
        """The records, one a line; those of failed samples are also written to ``failed``.

        Raises :class:`UserError` at the end if the file is not what ``infer`` wrote.
        """
        has_errors, seal = bool(self.contents.errors_by_stage), EMPTY
        for block in line_blocks(self._path, self._manifest.num_shards):
            seal = seal.extended(block)
            for line in BytesIO(block):
                # The input may hold this text, too. So the few lines with it are parsed.
                if has_errors and _ERROR in line and _parse(line).get("__status") == "error":
                    failed.write(line)
                yield line
        if seal != self.contents.seal:
            raise self._fault()

    def _fault(self) -> UserError:
        """The error about the file, from a comparison with its chunk."""
        path, num_ranks = self._path, self._manifest.num_shards
        if not path.exists():
            return UserError(f"{path} is missing; run snakemake again, nothing is inferred twice")
        self._manifest.check_chunk(self._layout, self._rank)
        entries = read_lines(self._layout.chunk(self._rank), num_ranks)
        fault = ": not what was written there"
        for line_number, (entry, line) in enumerate(
            zip_longest(entries, read_lines(path, num_ranks)), start=1
        ):
            expected_key = entry and ChunkEntry.from_line(entry).key
            key = line and _parse(line).get("__key", line[:40])
            if key != expected_key:
                expected = "the end of the file" if entry is None else f"sample {expected_key!r}"
                actual = "the end of the file" if line is None else repr(key)
                fault = f", line {line_number}: expected {expected}, found {actual}"
                break
        return UserError(
            f"{path}{fault}. Remove this rank file and run snakemake again; nothing is inferred "
            "twice"
        )


def _parse(line: bytes) -> dict[str, Any]:
    """The record of a line; empty if the line has none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
