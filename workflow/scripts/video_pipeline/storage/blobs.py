"""Blobs: bytes at an address, of which parts can be read."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from video_pipeline.storage.errors import VideoReadError

_PIECE_BYTES = 8 << 20
_AHEAD_BYTES = 256 << 10
"""The least that one request of :class:`BlobFile` reads: many headers fit into it."""


class Blob(ABC):
    """The bytes at an address.

    Attributes:
        is_local: Whether reading a part of it costs no request.
    """

    is_local = False

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes. Raises :class:`VideoReadError`, as all methods do, if it cannot be read."""

    @property
    def version(self) -> str:
        """A text that changes with the bytes; empty if the storage has none."""
        return ""

    @abstractmethod
    def read(self, start: int, stop: int) -> bytes:
        """The bytes from ``start`` up to ``stop``, which lie within it."""

    def pieces(self) -> Iterator[bytes]:
        """All bytes, in pieces."""
        for start in range(0, self.size, _PIECE_BYTES):
            yield self.read(start, min(start + _PIECE_BYTES, self.size))


class LocalBlob(Blob):
    """A local file, which stays open as long as the object lives."""

    is_local = True

    def __init__(self, path: str) -> None:
        check_regular(path)
        self._file = open(path, "rb", buffering=0)

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    @property
    def version(self) -> str:
        return str(os.fstat(self._file.fileno()).st_mtime_ns)

    def read(self, start: int, stop: int) -> bytes:
        data = os.pread(self._file.fileno(), stop - start, start)
        if len(data) < stop - start:
            raise VideoReadError("the file became shorter while it was read")
        return data


class Part(Blob):
    """A part of another blob."""

    def __init__(self, whole: Blob, start: int, size: int) -> None:
        self.is_local = whole.is_local
        self._whole = whole
        self._start = start
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read(self, start: int, stop: int) -> bytes:
        return self._whole.read(self._start + start, self._start + stop)


class Held(Blob):
    """Bytes in memory."""

    is_local = True

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]


class BlobFile(io.RawIOBase):
    """A blob as a file. A few small reads in a row cost one request."""

    def __init__(self, blob: Blob, max_read: int | None = None) -> None:
        """``max_read``: bytes that may be asked for at once, so that a number in a damaged file
        does not fill the memory."""
        self._blob = blob
        self._max_read = max_read
        self._position = 0
        self._begin, self._held = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._bytes(self._position, min(self._position + len(view), self._blob.size))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read as :class:`io.RawIOBase` does, but fewer than ``size`` bytes only at the end."""
        if size is None or size < 0:
            size = max(0, self._blob.size - self._position)
        if self._max_read is not None and size > self._max_read:
            raise VideoReadError(f"damaged: a part of it claims to be {size:,} bytes long")
        data = self._bytes(self._position, min(self._position + size, self._blob.size))
        self._position += len(data)
        return data

    def _bytes(self, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        if start < self._begin or stop > self._begin + len(self._held):
            ahead = 0 if self._blob.is_local else _AHEAD_BYTES
            end = max(stop, min(start + ahead, self._blob.size))
            self._begin, self._held = start, self._blob.read(start, end)
        return self._held[start - self._begin : stop - self._begin]


def save(
    blob: Blob, max_bytes: int, reserve: Callable[[int], None] = lambda num_bytes: None
) -> BinaryIO:
    """Copy a blob to a temporary file, which is removed when it is closed, or the process dies.

    Args:
        max_bytes: How large it may be.
        reserve: Called with the bytes of each piece before it is written.

    Raises:
        VideoReadError: It cannot be read, or is larger.
    """
    file = tempfile.TemporaryFile(buffering=0)
    size = 0
    try:
        for piece in blob.pieces():
            size += len(piece)
            if size > max_bytes:
                raise too_large(max_bytes)
            reserve(len(piece))
            _write(file, memoryview(piece))
        return file
    except BaseException:
        file.close()
        raise


def too_large(max_bytes: int) -> VideoReadError:
    """The error for a file of more than ``max_bytes``."""
    return VideoReadError(
        f"download: larger than {max_bytes / 1e9:g} GB, the limit data.max_download_gb"
    )


def _write(file: BinaryIO, piece: memoryview) -> None:
    try:
        while piece:
            piece = piece[file.write(piece) :]
    except OSError as error:
        raise VideoReadError(
            f"download: cannot be written to {tempfile.gettempdir()} (the environment variable "
            f"TMPDIR names another folder): {error.strerror}"
        ) from error


def check_regular(path: str) -> None:
    """Raise :class:`VideoReadError` if ``path`` is no regular file, or is empty. To open a pipe
    would wait for ever, and to open some devices makes them act."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoReadError(f"{error.strerror}: {os.path.abspath(path)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoReadError("is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoReadError("not a regular file")
    if status.st_size == 0:
        raise VideoReadError("file is empty (0 bytes)")
