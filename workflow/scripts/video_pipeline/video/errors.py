"""Errors of videos and images, and notes about damage that did no harm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from video_pipeline.storage.errors import VideoReadError

__all__ = ["VideoReadError", "note_damage", "noting_damage"]


_noted: list[str] | None = None
"""The messages of the current :func:`noting_damage` block, if there is one."""


@contextmanager
def noting_damage() -> Iterator[list[str]]:
    """Collect, within the block, a message about each damaged video that was read all the same."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def note_damage(message: str) -> None:
    """Say that a video is damaged, though all wanted frames could be read."""
    if _noted is not None:
        _noted.append(message)
