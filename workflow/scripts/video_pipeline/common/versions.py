"""The versions of files on disk. A reader handles earlier ones and refuses later ones."""

from __future__ import annotations

from pathlib import Path

from video_pipeline.errors import UserError

CHUNKS = 3
"""The version of the manifest, of its chunks and of their order."""

SUMMARY = 1
"""The version of the summary."""

PUBLISHED = 1
"""The version of the receipt of what was published."""


def check_version(path: Path, version: object, newest: int) -> None:
    """Raise :class:`UserError` if ``path`` holds a later ``version`` than the ``newest`` that this
    program reads."""
    if isinstance(version, int) and version > newest:
        raise UserError(
            f"{path} was written by a newer version of video-pipeline (version {version}, this one "
            f"reads up to {newest}): update, or set another data.output_jsonl"
        )
