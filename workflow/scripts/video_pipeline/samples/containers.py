"""Reads the samples in containers: the members of a tar, or the rows of a Parquet file."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import orjson

from video_pipeline.config.source import (
    VIDEO_SUFFIXES,
    Source,
    absolute,
    scheme_of,
    shown,
    stable_address,
)
from video_pipeline.errors import UserError
from video_pipeline.samples.input import parse_object
from video_pipeline.storage import tars
from video_pipeline.storage.access import TRUSTED
from video_pipeline.storage.blobs import BlobFile
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.opening import open_blob
from video_pipeline.storage.rows import has_bytes

logger = logging.getLogger(__name__)

CONTAINER_SUFFIXES = (".tar", ".parquet")

_ROWS = 1024
"""Rows of Parquet that are Python objects at the same time."""


def is_video(name: str) -> bool:
    """Whether a file is named like a video, and neither it nor a folder in its path is hidden."""
    return not _is_hidden(name) and name.lower().endswith(VIDEO_SUFFIXES)


def is_taken(name: str) -> bool:
    """Whether a file of a folder is a sample, or holds some."""
    return is_video(name) or (not _is_hidden(name) and name.lower().endswith(CONTAINER_SUFFIXES))


def _is_hidden(name: str) -> bool:
    name = name.removeprefix("./")  # As in the tar of `tar -c .`
    return name.startswith(".") or "/." in name


def json_line(source: Source, number: int, raw: dict[str, Any]) -> bytes:
    """``raw`` as JSON. Raises :class:`UserError` if JSON cannot carry it."""
    try:
        return orjson.dumps(raw, default=_text)
    except TypeError as error:  # For example, the name of a file is not UTF-8.
        raise UserError(
            f"{shown(source.place)}, sample {number}: cannot be written as JSON: {error}; "
            f"{raw!r:.200}"
        ) from None


def _text(value: Any) -> str:
    """A value that JSON has no type for, such as a decimal number, as text."""
    if isinstance(value, bytes):  # Their text, b'...', would pass for what was meant.
        raise TypeError
    return str(value)


def _path_in(source: Source, path: str) -> str:
    """The path of a container, relative to the root of its source; the whole of an http address,
    which may have a query."""
    if path:
        return path
    if scheme_of(source.place) in ("http", "https"):
        return source.place
    return source.place.rpartition("/")[2]


# --- tars -----------------------------------------------------------------------------------------


def members_of_tar(source: Source, video_field: str, path: str = "") -> Iterator[bytes]:
    """Yield each member that is named like a video as a sample. The JSON and the text next to it
    belong to it if they have its name up to the first dot, as in WebDataset, or up to the last one:
    the entries of the JSON object become fields, and the text becomes ``txt``. A warning counts
    those that belong to no video.

    Args:
        video_field: The field that gets the address of the member.
        path: The path of the tar in a folder or a pattern.

    Raises:
        UserError: It cannot be read, or holds no videos, or a member may not be read.
    """
    where, container = shown(source.place), _path_in(source, path)
    all_members: list[tars.Member] = []
    number, used = 0, set[str]()
    try:
        blob = open_blob(source.place, TRUSTED)
        version = {} if blob.is_local else {"etag": blob.version}
        for stem, entries in groupby(tars.members(blob), lambda entry: _stem(entry[0].name)):
            videos: list[tars.Member] = []
            beside: dict[str, list[tuple[tars.Member, bytes]]] = defaultdict(list)
            for member, read in entries:
                all_members.append(member)
                if named_video := is_video(member.name):
                    videos.append(member)
                elif _has_fields(member.name):
                    # It is read while the headers near it are here, and judged if a video has it.
                    is_small = not member.fault and member.size <= tars.MAX_HEADER_BYTES
                    beside[_bare(member.name)].append((member, read() if is_small else b""))
                if named_video or member.leads_out or member.name in used:
                    _check(member, where)
            for video in videos:
                number += 1
                names = dict.fromkeys([stem, _bare(video.name)])  # The fields of the last one win.
                own = [entry for name in names for entry in beside[name]]
                used.update(member.name for member, _ in own)
                raw = {"size": video.size, **_fields(own, where)}
                raw[video_field] = f"{container}#{video.name}"
                yield json_line(source, number, {**raw, **version})
        tars.remember(blob, stable_address(absolute(source.place)), all_members)
    except (OSError, VideoReadError) as error:
        raise UserError(f"cannot read {where}: {error}") from error
    if not number:
        raise UserError(f"{where}: no member is named like a video ({' '.join(VIDEO_SUFFIXES)})")
    if unused := [name for name, *_ in all_members if _has_fields(name) and name not in used]:
        logger.warning(
            f"{where}: {len(unused):,} .json or .txt member(s) gave no fields, for example "
            f"{unused[0]!r:.200}: no video next to it in the tar has its name, up to the first dot "
            "or the last. If they belong to videos, pack the folder again with `tar --sort=name`"
        )


def _check(member: tars.Member, where: str) -> None:
    if member.fault:
        raise UserError(f"{where}: the member {member.name!r:.200} {member.fault}")


def _has_fields(name: str) -> bool:
    return name.lower().endswith((".json", ".txt")) and not _is_hidden(name)


def _bare(name: str) -> str:
    return name.rpartition(".")[0]


def _stem(name: str) -> str:
    """The part of the name that the members of a sample of WebDataset share."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _fields(beside: list[tuple[tars.Member, bytes]], where: str) -> dict[str, Any]:
    """The fields in members that are JSON or text. Raises :class:`UserError`."""
    fields: dict[str, Any] = {}
    for member, data in beside:
        _check(member, where)
        name = f"{where}: the member {member.name!r:.200}"
        if member.size > tars.MAX_HEADER_BYTES:
            raise UserError(f"{name} has {member.size:,} bytes, more than a sample's fields may")
        is_text = member.name.lower().endswith(".txt")
        try:
            found = {"txt": data.decode()} if is_text else parse_object(data, check_numbers=True)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        # Records use the names that begin with two underscores.
        fields.update((k, v) for k, v in found.items() if not k.startswith("__"))
    return fields


# --- Parquet --------------------------------------------------------------------------------------


def rows_of_parquet(source: Source, video_field: str, path: str = "") -> Iterator[bytes]:
    """Yield each row as a sample. If its video is bytes, its address is that of the row. If no
    column is named ``video_field``, the only column of bytes holds the video. Other bytes are left
    out.

    Arguments and errors are those of :func:`members_of_tar`.
    """
    import pyarrow
    from pyarrow import parquet

    where, container = shown(source.place), _path_in(source, path)
    try:
        blob = open_blob(source.place, TRUSTED)
        with parquet.ParquetFile(BlobFile(blob)) as file:
            schema = file.schema_arrow
            if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
                raise UserError(f"{where}: two columns have the name {twice[0]!r:.100}; rename one")
            names = [field.name for field in schema if not _holds_bytes(field.type)]
            videos = [field.name for field in schema if has_bytes(field.type)]
            if video_field in videos:
                videos = [video_field]
            elif video_field in names:
                videos = []
            elif len(videos) != 1:
                raise UserError(
                    f"{where}: no column {video_field!r} (data.video_field) of paths or bytes; it "
                    f"has {', '.join(f'{field.name} ({field.type})' for field in schema)}"[:500]
                )
            version = {"etag": blob.version} if videos and not blob.is_local else {}
            number = 0
            for batch in file.iter_batches(_ROWS, columns=names):
                for raw in batch.to_pylist():
                    if videos:
                        raw[video_field] = f"{container}#{number}:{videos[0]}"
                    number += 1
                    yield json_line(source, number, {**raw, **version})
    # Python has no value for some: a date after the year 9999, a text that is not UTF-8.
    except (OSError, ValueError, ArithmeticError, LookupError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {where}: {error}") from error


def _holds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type are or hold bytes, which JSON cannot carry."""
    from pyarrow import types

    if types.is_nested(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    return has_bytes(kind) or bool(types.is_fixed_size_binary(kind))
