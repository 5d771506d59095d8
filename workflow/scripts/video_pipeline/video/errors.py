"""What goes wrong with a video."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class VideoReadError(ValueError):
    """A video, or an image, that cannot be read or may not be. The message says why, without its
    address, which may hold a password; of a local file that is not there it names the path."""


_noted: list[str] | None = None
"""Of the present :func:`noting_damage` block, if there is one."""


@contextmanager
def noting_damage() -> Iterator[list[str]]:
    """Within the block, in this process, videos that are damaged and could be read all the same add
    a message each to the list that this yields."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def note_damage(message: str) -> None:
    """Say that a video is damaged although what was wanted of it could be read."""
    if _noted is not None:
        _noted.append(message)
