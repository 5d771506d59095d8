"""The samples of a chunk, as datasets see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from video_pipeline.chunks import Chunk
from video_pipeline.config import Config
from video_pipeline.samples.input import task_sample


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
