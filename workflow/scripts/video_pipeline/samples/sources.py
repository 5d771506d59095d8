"""Sources: what an input may be, as the JSONL that it stands for.

A table, a list, a folder and a pattern are read as lines of JSON, one for each sample. Line N of
these lines stands for line N of a text file, so that messages name the right one; of other sources
for their Nth sample.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from fsspec.utils import glob_translate

from video_pipeline.config.source import Source, shown
from video_pipeline.errors import UserError
from video_pipeline.samples.blocks import BLOCK_BYTES, whole_lines
from video_pipeline.samples.identity import digest
from video_pipeline.storage import stores
from video_pipeline.storage.access import TRUSTED
from video_pipeline.storage.blobs import BlobFile
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.opening import open_blob

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Files of a folder that are taken for videos. A pattern takes each file that it matches."""

NUMBERS = ("video_start", "video_end", "duration", "frames_fps")
"""Columns of a CSV that hold numbers. All others are text: an id may be ``007``."""

_ROWS = 1024  # of Parquet that are held as Python objects


def read_blocks(place: str | Path, video_field: str = "path") -> Iterator[bytes]:
    """Yield the lines of JSON that an input stands for, in blocks of about 256 kB that end where a
    line ends, without a leading byte-order mark.

    Args:
        place: What ``data.input_jsonl`` names, see :class:`video_pipeline.config.source.Source`.
        video_field: The field that gets the path of a video, relative to the root of the source.

    Raises:
        UserError: It cannot be read, or holds no videos.
    """
    source = Source(os.fspath(place))
    if source.kind == "jsonl":
        return whole_lines(source)
    read = _READERS[source.kind]
    return _blocks(read(source, video_field))


def _blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """``lines`` without their ends, in blocks."""
    block: list[bytes] = []
    size = 0
    for line in lines:
        block.append(line + b"\n")
        size += len(line) + 1
        if size >= BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)


def _json(source: Source, number: int, raw: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(raw, default=str)
    except TypeError as error:  # such as a name of a file that is not UTF-8
        raise UserError(
            f"{shown(source.place)}, sample {number}: cannot be written as JSON: {error}; "
            f"{raw!r:.200}"
        ) from None


# --- text -----------------------------------------------------------------------------------------


def _text_lines(source: Source) -> Iterator[str]:
    """The lines of a text file with their ends. Raises :class:`UserError` if it is no UTF-8."""
    number = 0
    for block in whole_lines(source):
        for line in block.removesuffix(b"\n").split(b"\n"):
            number += 1
            try:
                yield f"{line.decode()}\n"
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{shown(source.place)}, line {number}: byte {line[error.start]:#x} is not "
                    "UTF-8; save the file as UTF-8"
                ) from None


def _list(source: Source, video_field: str) -> Iterator[bytes]:
    """A path or an address on each line."""
    for number, line in enumerate(_text_lines(source), 1):
        path = line.strip()
        yield _json(source, number, {video_field: path}) if path else b""


def _table(delimiter: str, source: Source, video_field: str) -> Iterator[bytes]:
    """A row is a sample; the first one names the fields. An empty cell is no field."""
    rows = csv.reader(_text_lines(source), delimiter=delimiter, strict=True)
    where, written = shown(source.place), 0
    try:
        names = next(rows, [])
        if video_field not in names:
            raise UserError(
                f"{where}: the first row must name the columns, and one of them must be "
                f"{video_field!r} (data.video_field); it is {names!r:.200}"
            )
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise UserError(f"{where}: two columns have the name {twice!r}")
        for row in rows:
            if len(row) > len(names):
                raise UserError(
                    f"{where}, line {rows.line_num}: {len(row)} cells, but only {len(names)} "
                    "columns have a name; put text that holds the delimiter in quotation marks"
                )
            # A cell may hold line ends, and the row is known by the number of its last line.
            for _ in range(rows.line_num - written - 1):
                yield b""
            cells = zip(names, row, strict=False)
            raw = {name: _cell(name, text) for name, text in cells if name and text}
            yield _json(source, rows.line_num, raw) if raw else b""
            written = rows.line_num
    except csv.Error as error:
        raise UserError(f"{where}, line {rows.line_num}: {error}") from None


def _cell(name: str, text: str) -> str | float | int:
    if name not in NUMBERS:
        return text
    try:
        value = orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return text  # The check of the sample says what is wrong with it.
    return value if type(value) in (int, float) else text


# --- Parquet --------------------------------------------------------------------------------------


def _parquet(source: Source, video_field: str) -> Iterator[bytes]:
    """A row is a sample; columns of bytes are left out."""
    import pyarrow
    from pyarrow import parquet

    where = shown(source.place)
    try:
        with parquet.ParquetFile(BlobFile(open_blob(source.place, TRUSTED))) as file:
            schema = file.schema_arrow
            names = [field.name for field in schema if not _holds_bytes(field.type)]
            if video_field not in names:
                raise UserError(
                    f"{where}: no column {video_field!r} (data.video_field) of text; it has "
                    f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"[:500]
                )
            number = 0
            for batch in file.iter_batches(_ROWS, columns=names):
                for raw in batch.to_pylist():
                    number += 1
                    yield _json(source, number, raw)
    except (OSError, VideoReadError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {where}: {error}") from error


def _holds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are bytes, or hold some, which JSON cannot carry."""
    from pyarrow import types

    if types.is_nested(kind):
        return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


# --- folders --------------------------------------------------------------------------------------


def listed(source: Source) -> Iterator[dict[str, Any]]:
    """The files of a folder or a pattern, sorted: their ``path`` relative to its root; in a store
    also their ``size`` in bytes and their ``etag``, which changes when their content does. Of a
    folder those that are named like videos, in it and in the folders below; hidden ones are left
    out.

    Raises :class:`UserError` if the folder cannot be read.
    """
    if source.is_local:
        yield from ({"path": name} for name in sorted(_local_names(source)))
        return
    root = f"{source.root}/"
    pattern = source.place.removeprefix(root) if source.kind == "pattern" else ""
    matches = re.compile(glob_translate(pattern)).fullmatch if pattern else is_video
    start = root + re.split(r"[*?[]", pattern)[0]
    try:
        for found in stores.listed(start):
            name = found.address.removeprefix(root)
            if matches(name):
                yield {"path": name, "size": found.size, "etag": found.version}
    except VideoReadError as error:
        raise UserError(f"cannot list {shown(source.place)}: {error}") from error


def _local_names(source: Source) -> list[str]:
    root = Path(source.root)
    if source.kind == "pattern":
        pattern = os.path.relpath(source.place, root)
        found = glob.glob(pattern, root_dir=root, recursive=True)
        return [name for name in found if (root / name).is_file()]
    names: list[str] = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(folder, root)
        start = "" if prefix == "." else f"{prefix}/"
        names += [start + name for name in files if is_video(name)]
    return names


def is_video(path: str) -> bool:
    """Whether a file is named like a video, and neither it nor a folder of ``path`` is hidden."""
    hidden = path.startswith(".") or "/." in path
    return not hidden and path.lower().endswith(VIDEO_SUFFIXES)


def _raise(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _listing(source: Source, video_field: str) -> Iterator[bytes]:
    number = 0
    for number, found in enumerate(listed(source), 1):
        yield _json(source, number, {video_field: found.pop("path"), **found})
    if not number:
        raise UserError(_nothing_there(source))


def _nothing_there(source: Source) -> str:
    where = shown(source.place)
    if source.kind == "pattern":
        return f"{where}: the pattern matches no file"
    shown_names = ""
    if source.is_local:
        others = (entry.name for entry in os.scandir(source.place) if not entry.is_dir())
        shown_names = ", ".join(sorted(islice(others, 5)))
    return (
        f"{where}: no videos in this folder or below ({' '.join(VIDEO_SUFFIXES)})"
        + (f"; it holds {shown_names}" if shown_names else "")
        + ". A pattern such as `folder/*.jpg` takes files of any name"
    )


def source_digest(source: Source) -> str | None:
    """What stands for the content of an input: of a folder or a pattern, for what it lists; of a
    remote file, for what its place tells of it. None if it cannot be read."""
    try:
        if source.is_file:
            blob = open_blob(source.place, TRUSTED)
            return f"{blob.size} bytes, {blob.version}"
        names = (repr(sorted(found.items())) for found in listed(source))
        return digest("\0".join(names).encode("utf-8", "surrogateescape"))
    except (OSError, UserError, VideoReadError):
        return None


_READERS: dict[str, Callable[[Source, str], Iterator[bytes]]] = {
    "txt": _list,
    "csv": partial(_table, ","),
    "tsv": partial(_table, "\t"),
    "parquet": _parquet,
    "folder": _listing,
    "pattern": _listing,
}
