"""Files that were fetched ahead (:mod:`video_pipeline.storage.fetcher`), where they are read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from video_pipeline.storage.errors import VideoReadError


@dataclass(frozen=True)
class Fetched:
    """What became of an address.

    Attributes:
        path: The file of the fetcher, which has no name of its own: ``/proc/PID/fd/N``.
        inode: Its device and inode, by which it is known.
        error: Why it cannot be read; then there is no file.
    """

    path: str = ""
    inode: tuple[int, int] = (0, 0)
    error: str = ""


NOTHING: Mapping[str, Fetched] = {}


@dataclass
class Reading:
    """Reads what was fetched."""

    files: Mapping[str, Fetched]
    used: bool = False  # any of it was asked for


_reading = Reading(NOTHING)


@contextmanager
def reading(files: Mapping[str, Fetched]) -> Iterator[Reading]:
    """In the block, this process finds the bytes of these addresses here."""
    global _reading
    before, _reading = _reading, Reading(files)
    try:
        yield _reading
    finally:
        _reading = before


def opened(address: str) -> BinaryIO | None:
    """The file of ``address``; None if it was not fetched, or is gone with the fetcher. Raises
    :class:`VideoReadError` if it cannot be fetched."""
    found = _reading.files.get(address)
    if found is None:
        return None
    if found.error:
        _reading.used = True
        raise VideoReadError(found.error)
    try:
        file = open(found.path, "rb", buffering=0)
    except OSError:
        return None
    if inode_of(file) == found.inode:
        _reading.used = True
        return file
    file.close()  # Another process has taken the number of the fetcher.
    return None


def inode_of(file: BinaryIO) -> tuple[int, int]:
    """Device and inode of an open file."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
