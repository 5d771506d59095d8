"""The samples of a chunk, as datasets see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from video_pipeline.config import Config
from video_pipeline.run.chunks import Chunk
from video_pipeline.samples.input import task_sample


class ChunkSamples(Sequence[dict[str, Any]]):
    """The input objects of a chunk plus ``__key`` and ``__video_uri``, read when they are asked
    for."""

    def __init__(self, chunk: Chunk, config: Config) -> None:
        self._chunk = chunk
        self._config = config

    def __len__(self) -> int:
        return len(self._chunk)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self[position] for position in positions]
        entry = self._chunk[positions]
        return task_sample(entry.key, entry.raw, self._config)
