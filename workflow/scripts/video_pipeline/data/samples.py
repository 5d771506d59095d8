"""The samples of a chunk, read lazily."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from video_pipeline.config import Config
from video_pipeline.samples import task_sample
from video_pipeline.sharding import ChunkEntry


class Chunk(Sequence[ChunkEntry]):
    """The entries of a chunk file by position; only their offsets are held in memory.

    Attributes:
        path: The chunk file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = open(path, "rb")
        self._offsets = array("Q")
        offset = 0
        for line in self._stream:
            self._offsets.append(offset)
            offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, position: int) -> ChunkEntry:
        self._stream.seek(self._offsets[position])
        return ChunkEntry.from_line(self._stream.readline())

    def __iter__(self) -> Iterator[ChunkEntry]:
        for position in range(len(self)):
            yield self[position]


class ChunkSamples(Sequence[dict[str, Any]]):
    """What a dataset sees of a chunk: input objects plus ``__key`` and ``__video_uri``."""

    def __init__(self, chunk: Chunk, config: Config) -> None:
        self._chunk = chunk
        self._config = config

    def __len__(self) -> int:
        return len(self._chunk)

    def __getitem__(self, position: int) -> dict[str, Any]:
        entry = self._chunk[position]
        return task_sample(entry.key, entry.raw, self._config)
