"""Reads the files that :mod:`video_pipeline.storage.fetcher` has downloaded ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from video_pipeline.storage.errors import VideoReadError


@dataclass(frozen=True)
class Fetched:
    """The result of fetching an address.

    Attributes:
        path: The file of the fetcher, which has no name of its own: ``/proc/PID/fd/N``.
        inode: Its device and inode, which identify it.
        error: Why the address cannot be read; then there is no file.
    """

    path: str = ""
    inode: tuple[int, int] = (0, 0)
    error: str = ""


NOTHING: Mapping[str, Fetched] = {}


@dataclass
class Reading:
    """The fetched files of a block of :func:`reading`, by address."""

    files: Mapping[str, Fetched]
    used: bool = False  # Whether any of them was asked for.


_reading = Reading(NOTHING)


@contextmanager
def reading(files: Mapping[str, Fetched]) -> Iterator[Reading]:
    """Let :func:`opened` find ``files`` within the block, in this process."""
    global _reading
    before, _reading = _reading, Reading(files)
    try:
        yield _reading
    finally:
        _reading = before


def opened(address: str) -> BinaryIO | None:
    """The file of ``address``; None if it was not fetched, or is gone with the fetcher. Raises
    :class:`VideoReadError` if it cannot be fetched."""
    fetched = _reading.files.get(address)
    if fetched is None:
        return None
    if fetched.error:
        _reading.used = True
        raise VideoReadError(fetched.error)
    try:
        file = open(fetched.path, "rb", buffering=0)
    except OSError:
        return None
    if inode_of(file) == fetched.inode:
        _reading.used = True
        return file
    file.close()  # Another process has taken the number of the fetcher.
    return None


def inode_of(file: BinaryIO) -> tuple[int, int]:
    """Device and inode of an open file."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino
