"""Reads videos from rows of Parquet: many datasets of the Hugging Face hub have them as bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from video_pipeline.storage.blobs import Blob, BlobFile, Held, too_large
from video_pipeline.storage.errors import VideoReadError

_ROW = re.compile(r"(\d{1,18}):(.+)", re.DOTALL)
_BUFFER_BYTES = 1 << 20


def row(blob: Blob, container: str, name: str, max_bytes: int) -> Blob:
    """The bytes in one row and column of the Parquet file at the address ``container``; ``name`` is
    ``17:video``, the number of the row from 0 and the column.

    Raises :class:`VideoReadError` if there is no such row or column, or they hold no bytes.
    """
    global _reader
    parts = _ROW.fullmatch(name)
    if parts is None:
        raise VideoReadError(f"{name!r:.200} names no row of Parquet; one is 17:video")
    index, column = int(parts[1]), parts[2]
    key = (container, blob.size, blob.version, column)
    if _reader is None or _reader.key != key:
        _reader = _Reader(key, blob, column)
    data = _reader.value(index)
    if data is None:
        raise VideoReadError(f"row {index} has no bytes in the column {column!r}")
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return Held(data)


class _Reader:
    """Reads a column forwards, one value at a time: most samples of a job follow each other, and a
    row group may hold more than fits into memory."""

    def __init__(self, key: tuple[Any, ...], blob: Blob, column: str) -> None:
        import pyarrow
        from pyarrow import parquet

        self.key = key
        try:
            self._file = parquet.ParquetFile(
                BlobFile(blob), buffer_size=_BUFFER_BYTES, pre_buffer=False
            )
            schema = self._file.schema_arrow
        except (OSError, pyarrow.ArrowException) as error:
            raise VideoReadError(f"not a Parquet file, or a damaged one ({error})") from error
        if column not in schema.names or not has_bytes(schema.field(column).type):
            raise VideoReadError(
                f"no column {column!r:.100} of bytes; the file has {', '.join(schema.names)}"[:400]
            )
        is_struct = schema.field(column).type.num_fields > 0
        self._columns = [f"{column}.bytes" if is_struct else column]
        self._values: Iterator[bytes | None] = iter(())
        self._group = -1
        self._next = 0  # The row in its group that comes next.

    def value(self, index: int) -> bytes | None:
        """The bytes in the row ``index``, counted from 0."""
        import pyarrow

        group, offset = self._place(index)
        if group != self._group or offset < self._next:
            self._next, self._values = 0, self._read(group)
        self._group = -1  # A read that fails ends the values: the next row begins its group again.
        try:
            for data in self._values:
                self._next += 1
                if self._next > offset:
                    self._group = group
                    return data
        except (OSError, pyarrow.ArrowException) as error:
            raise VideoReadError(f"the row cannot be read ({error})") from error
        raise VideoReadError("the file ends before the row")

    def _place(self, index: int) -> tuple[int, int]:
        """The row group that has a row, and the offset of the row in it."""
        metadata, offset = self._file.metadata, index
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if offset < rows:
                return group, offset
            offset -= rows
        raise VideoReadError(f"no row {index}: the file has {metadata.num_rows:,} rows")

    def _read(self, group: int) -> Iterator[bytes | None]:
        for batch in self._file.iter_batches(1, row_groups=[group], columns=self._columns):
            value = batch.column(0)[0].as_py()
            yield value["bytes"] if isinstance(value, dict) else value


_reader: _Reader | None = None
"""The reader that this process used last."""


def has_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are bytes, or a struct that has them as ``bytes``, which is
    how Hugging Face's ``datasets`` writes videos and images."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and has_bytes(kind.field(index).type)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))
