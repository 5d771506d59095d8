"""Reads a text file, decompressed, in blocks that end where a line ends."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from video_pipeline.config.source import Source, shown
from video_pipeline.errors import UserError
from video_pipeline.storage.access import TRUSTED
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.opening import copy_of

BLOCK_BYTES = 1 << 18

MAX_LINE_BYTES = 1 << 28
"""The longest line that is read: a small compressed file may hold one without an end."""

_UTF8_BOM = b"\xef\xbb\xbf"

_PACKED = re.compile(rb"PK\x03\x04|7z\xbc\xaf|Rar!\x1a|BZh\d1AY|\xfd7zXZ|\x1f\x8b|\x28\xb5\x2f\xfd")
"""The start of an archive, or of a compressed file whose name does not say so."""


def whole_lines(source: Source) -> Iterator[bytes]:
    """Yield a plain, ``.gz`` or ``.zst`` file in blocks of about 256 kB that end where a line ends,
    without a leading byte-order mark.

    Raises :class:`UserError` if the file cannot be read.
    """
    where = shown(source.place)
    try:
        with open_source(source) as file:
            pieces: list[bytes] = [b""]  # Those of an unfinished line.
            size, mark = 0, _UTF8_BOM
            for data in _decompressed(source, file):
                if mark and not size and _PACKED.match(data):
                    raise OSError("it is packed: unpack it, or pack its text as .gz or .zst")
                end = data.rfind(b"\n") + 1
                pieces.append(data[:end] if end else data)
                if end:
                    yield b"".join(pieces).removeprefix(mark)
                    pieces, mark, size = [data[end:]], b"", 0
                size += len(pieces[-1])
                if size > MAX_LINE_BYTES:
                    raise UserError(f"{where}: a line is longer than {MAX_LINE_BYTES >> 20} MiB")
            if last_line := b"".join(pieces).removeprefix(mark):
                yield last_line
    except (OSError, EOFError, zlib.error, VideoReadError) as error:
        raise UserError(f"cannot read {where}: {error}") from error


def open_source(source: Source) -> BinaryIO:
    """Open a file that the user's configuration names; a remote file is copied to a temporary one.
    Raises :class:`VideoReadError` or :class:`OSError`."""
    if source.is_local:
        return open(source.place, "rb", buffering=0)
    file = copy_of(source.place, TRUSTED)
    file.seek(0)
    return file


def _decompressed(source: Source, file: BinaryIO) -> Iterator[bytes]:
    """The decompressed bytes of an open file; its suffix names the compression."""
    stream: Any = file
    if source.compression == ".gz":
        stream = gzip.open(file, "rb")
    elif source.compression == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(file, "zstd")
    return iter(lambda: stream.read(BLOCK_BYTES), b"")
