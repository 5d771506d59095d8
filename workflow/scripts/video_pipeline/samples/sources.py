"""Reads every kind of input as the JSONL that it stands for.

A table, a list, a folder and a pattern are read as lines of JSON, one for each sample. Messages
name a sample by the number of its line. So line N stands for line N of a text file, and for the Nth
sample of any other source.
"""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from fsspec.utils import glob_translate

from video_pipeline.config import Data
from video_pipeline.config.source import VIDEO_SUFFIXES, Source, shown
from video_pipeline.errors import UserError
from video_pipeline.samples.blocks import BLOCK_BYTES, MAX_LINE_BYTES, whole_lines
from video_pipeline.samples.containers import (
    CONTAINER_SUFFIXES,
    is_taken,
    json_line,
    members_of_tar,
    rows_of_parquet,
)
from video_pipeline.samples.identity import digest
from video_pipeline.samples.input import BadLines, InputReader, InputSample
from video_pipeline.storage import stores
from video_pipeline.storage.access import TRUSTED
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.opening import open_blob

NUMBERS = ("video_start", "video_end", "duration", "frames_fps")
"""Columns of a CSV that hold numbers. All others are text: an id may be ``007``."""


def read_blocks(place: str | Path, video_field: str = "path") -> Iterator[bytes]:
    """Yield the lines of JSON that an input stands for, in blocks of about 256 kB that end where a
    line ends, without a leading byte-order mark.

    Args:
        place: ``data.input_jsonl``, see :class:`video_pipeline.config.source.Source`.
        video_field: The field that gets the path of a video, relative to the root of the source.

    Raises:
        UserError: It cannot be read, or holds no videos.
    """
    source = Source(os.fspath(place))
    if source.kind == "jsonl":
        return whole_lines(source)
    return _blocks(_READERS[source.kind](source, video_field))


def read_samples(data: Data, bad: BadLines, needs_video: bool = True) -> Iterator[InputSample]:
    """Yield the samples of ``data.input_jsonl`` that a run asks about, whatever ``data.where``, and
    note its bad lines in ``bad``. ``needs_video``: whether a sample without a video is bad. Raises
    :class:`UserError` as :func:`read_blocks` does."""
    for with_failed in (False, True):  # Failed samples are samples if there are no others.
        first, all_failed = 1, True
        for block in read_blocks(data.input_jsonl, data.video_field):
            reader = InputReader(data, block, first, needs_video, with_failed)
            yield from (sample for sample in reader if sample.left_out is None)
            bad.merge(reader.bad)
            first += block.count(b"\n")
            all_failed &= reader.failed == reader.lines
        if not all_failed:
            return


def _blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """``lines`` without their ends, in blocks."""
    block, size = list[bytes](), 0
    for line in lines:
        block.append(line + b"\n")
        size += len(line) + 1
        if size >= BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
    if block:
        yield b"".join(block)


# --- text -----------------------------------------------------------------------------------------


def _text_lines(source: Source) -> Iterator[str]:
    """The lines of a text file with their ends. Raises :class:`UserError` if it is not UTF-8."""
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
    """Each line is the path or the address of a sample."""
    for number, line in enumerate(_text_lines(source), 1):
        path = line.strip()
        yield json_line(source, number, {video_field: path}) if path else b""


def _video(source: Source, video_field: str) -> Iterator[bytes]:
    """The only sample, with the path that it has in its folder."""
    path = Path(source.place).name if source.is_local else source.place
    yield json_line(source, 1, {video_field: path})


def _table(delimiter: str, source: Source, video_field: str) -> Iterator[bytes]:
    """The first row names the fields, and each other row is a sample. An empty cell is no field."""
    csv.field_size_limit(MAX_LINE_BYTES)  # The transcript of some hours exceeds the default.
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
            # A cell may hold line ends. The row has the number of its last line.
            for _ in range(rows.line_num - written - 1):
                yield b""
            cells = zip(names, row, strict=False)
            raw = {name: _cell(name, text) for name, text in cells if name and text}
            yield json_line(source, rows.line_num, raw) if raw else b""
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


# --- folders --------------------------------------------------------------------------------------


def listed(source: Source) -> Iterator[dict[str, Any]]:
    """The files of a folder or a pattern, sorted, each with its ``path`` relative to the root. A
    file in a store also has its ``size`` in bytes and its ``etag``, which changes with its content.
    A folder gives the files in it and below that are named like videos, tars or Parquet, and are
    not hidden.

    Raises :class:`UserError` if the folder cannot be read.
    """
    if source.is_local:
        yield from ({"path": name} for name in sorted(_local_names(source)))
        return
    root = f"{source.root}/"
    pattern = source.place.removeprefix(root) if source.kind == "pattern" else ""
    matches = re.compile(glob_translate(pattern)).fullmatch if pattern else is_taken
    start = root + re.split(r"[*?[]", pattern)[0]
    try:
        for entry in stores.listed(start):
            name = entry.address.removeprefix(root)
            if matches(name):
                yield {"path": name, "size": entry.size, "etag": entry.version}
    except VideoReadError as error:
        raise UserError(f"cannot list {shown(source.place)}: {error}") from error


def _local_names(source: Source) -> list[str]:
    root, names = Path(source.root), list[str]()
    if source.kind == "pattern":
        pattern = os.path.relpath(source.place, root)
        for name in glob.iglob(pattern, root_dir=root, recursive=True):
            if "**" in pattern:
                _check_no_loop(root, Path(name).parent)
            if not (root / name).is_dir():  # A link that leads nowhere is a missing file.
                names.append(name)
        return names
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(folder, root)
        start = "" if prefix == "." else f"{prefix}/"
        names += [start + name for name in files if is_taken(name)]
    return names


@lru_cache(maxsize=1024)
def _check_no_loop(root: Path, folder: Path) -> None:
    """Raise :class:`UserError` if a link in ``folder`` leads back to a folder before it."""
    places = [(root / path).resolve() for path in (folder, *folder.parents)]
    if len(set(places)) < len(places):
        raise UserError(f"{root / folder}: a link leads back, so `**` finds files again and again")


def _raise(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _listing(source: Source, video_field: str) -> Iterator[bytes]:
    """Each video is a sample. Then follow the samples in tars and Parquet files, if a pattern
    matches these, or the folder has no videos."""
    number, containers = 0, list[str]()
    for entry in listed(source):
        path = entry.pop("path")
        if path.lower().endswith(CONTAINER_SUFFIXES):
            containers.append(path)
        else:
            number += 1
            yield json_line(source, number, {video_field: path, **entry})
    if source.kind == "pattern" or not number:
        for path in containers:
            read = rows_of_parquet if path.lower().endswith(".parquet") else members_of_tar
            yield from read(Source(f"{source.root}/{path}"), video_field, path)
    if not number and not containers:
        raise UserError(_nothing_there(source))


def _nothing_there(source: Source) -> str:
    where = shown(source.place)
    if source.kind == "pattern":
        return f"{where}: the pattern matches no file"
    entries = os.scandir(source.place) if source.is_local else ()
    names = sorted(islice((entry.name for entry in entries if not entry.is_dir()), 5))
    held = f"; it holds {', '.join(names)}" if names else ""
    return (
        f"{where}: no videos in this folder or below ({' '.join(VIDEO_SUFFIXES)}){held}. A pattern "
        "such as `folder/*.jpg` takes files of any name"
    )


def source_digest(source: Source) -> str | None:
    """A text that stands for the content of an input: for the files that a folder or a pattern
    lists, or for the size and version of a remote file. None if it cannot be read."""
    try:
        if source.is_file:
            blob = open_blob(source.place, TRUSTED)
            return f"{blob.size} bytes, {blob.version}"
        versions = (_version(source, entry) for entry in listed(source))
        return digest("\0".join(versions).encode("utf-8", "surrogateescape"))
    except (OSError, UserError, VideoReadError):
        return None


def _version(source: Source, entry: dict[str, Any]) -> str:
    path = entry["path"]
    if source.is_local and path.lower().endswith(CONTAINER_SUFFIXES):
        status = os.stat(f"{source.root}/{path}")
        return f"{path} {status.st_size} {status.st_mtime_ns}"
    return repr(sorted(entry.items()))


_READERS: dict[str, Callable[..., Iterator[bytes]]] = {
    "txt": _list,
    "csv": partial(_table, ","),
    "tsv": partial(_table, "\t"),
    "parquet": rows_of_parquet,
    "tar": members_of_tar,
    "video": _video,
    "folder": _listing,
    "pattern": _listing,
}
