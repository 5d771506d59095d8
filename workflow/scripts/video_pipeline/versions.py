"""The version that a file carries: of an earlier one the reader knows what to do, of a later one
nobody here does."""

from __future__ import annotations

from pathlib import Path

from video_pipeline.errors import UserError

CHUNKS = 2
"""Of the manifest, and of the chunks and the order that it vouches for."""


SUMMARY = 1
"""Of the summary."""


def check_version(path: Path, found: object, known: int) -> None:
    """Raise :class:`UserError` if ``path`` was written by a later version of video-pipeline;
    ``found`` is the version that it carries, ``known`` the last that can be read."""
    if isinstance(found, int) and found > known:
        raise UserError(
            f"{path} was written by a newer version of video-pipeline (version {found}, this one "
            f"reads up to {known}): update, or set another data.output_jsonl"
        )
