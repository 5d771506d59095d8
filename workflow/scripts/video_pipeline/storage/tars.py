"""Finds the members of tars, and keeps where they lie.

Nothing is ever unpacked to a path: a member is a range of bytes, so its name cannot lead anywhere.
A name that would lead out of a folder is refused all the same: its author meant no good.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson

from video_pipeline.common.files import replacing
from video_pipeline.storage.blobs import Blob, BlobFile, Part
from video_pipeline.storage.errors import VideoReadError

MAX_HEADER_BYTES = 1 << 20
"""The largest header of a member: one with a long name is a few kB."""


class Member(NamedTuple):
    """A member of a tar: ``size`` bytes from ``start`` on, if it is a file that may be read."""

    name: str
    start: int
    size: int
    fault: str  # why it may not be read; empty if it may

    @property
    def leads_out(self) -> bool:
        """Whether its name, as a path, leads out of the folder that the tar is unpacked in."""
        return self.name.startswith("/") or ".." in self.name.split("/")


def members(blob: Blob) -> Iterator[tuple[Member, Callable[[], bytes]]]:
    """The members of a tar in their order, without folders, and a function that reads each. Only
    the headers of a remote tar are fetched, and small members with them. A name that was there
    before is a fault.

    Raises :class:`VideoReadError` if it is no tar, or is damaged or cut off.
    """
    file = BlobFile(blob, MAX_HEADER_BYTES)
    names: set[str] = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None and tar.offset > info.offset:
                cast("Any", tar).members.clear()  # It would keep all of them.
                if not info.isdir():
                    yield _member(info, blob.size, names), partial(_read, file, info)
                    names.add(info.name)
            end = tar.offset
    except tarfile.TarError as error:
        raise VideoReadError(f"not a tar, a compressed one, or a damaged one ({error})") from error
    # tarfile takes a damaged header for the end of the tar, and does not see what follows the end.
    # A negative size leads back: CVE-2025-8194, in Python before 3.11.14, 3.12.12 and 3.13.6.
    is_short = not 0 <= end <= blob.size - tarfile.BLOCKSIZE
    if is_short or blob.read(end, min(end + MAX_HEADER_BYTES, blob.size)).strip(b"\0"):
        fault = f"damaged or cut off at byte {end:,}, or another tar follows there, as after `cat`"
        raise VideoReadError(f"the tar is {fault}")


def _read(file: BlobFile, info: tarfile.TarInfo) -> bytes:
    file.seek(info.offset_data)
    return file.read(info.size)


def _member(info: tarfile.TarInfo, total: int, names: set[str]) -> Member:
    fault = ""
    if Member(info.name, 0, 0, fault).leads_out:
        fault = "has a name that leads out of the tar"
    elif info.islnk() or info.issym():
        fault = f"is a link to {info.linkname!r:.100}, and links are not followed"
    elif not info.isreg():
        fault = "is not a regular file"
    elif info.issparse():
        fault = "is a sparse file, which is not read"
    elif not 0 <= info.size <= total - info.offset_data:
        fault = f"is cut off: it claims {info.size:,} bytes, more than the tar holds"
    elif info.name in names:
        fault = "is in the tar more than once, as after `tar -r`; pack it again with distinct names"
    return Member(info.name, info.offset_data, info.size, fault)


def member(blob: Blob, container: str, name: str, max_bytes: int) -> Blob:
    """The member ``name`` of the tar at the address ``container``. Raises :class:`VideoReadError`
    if it is not there or may not be read."""
    place = _index(_Key(container, blob.size, blob.version), blob).get(name)
    if place is None:
        raise VideoReadError(f"the tar has no member {name!r:.200}")
    if isinstance(place, str):
        raise VideoReadError(f"the member {name!r:.200} {place}")
    start, size = place
    if size > max_bytes:
        raise VideoReadError(
            f"the member has {size / 1e9:g} GB, more than the limit data.max_download_gb: "
            f"{max_bytes / 1e9:g}"
        )
    return Part(blob, start, size)


_Places = dict[str, list[int] | str]
"""Start and size of each member, or why it may not be read."""


class _Key(NamedTuple):
    container: str
    size: int
    version: str


def remember(blob: Blob, container: str, all_members: list[Member]) -> None:
    """Keep where the members of a tar lie, if the storage tells when the tar changes."""
    if blob.version:
        _write(_Key(container, blob.size, blob.version), _places(all_members))


def _places(all_members: list[Member]) -> _Places:
    # Of members with the same name the last one is kept, which has a fault.
    return {member.name: member.fault or [member.start, member.size] for member in all_members}


_held: dict[_Key, _Places] = {}
_MOST_HELD = 16
_indexing = threading.Lock()


def _index(key: _Key, blob: Blob) -> _Places:
    if (places := _held.get(key)) is not None:
        return places
    with _indexing:  # Many threads may ask for the members of one tar.
        places = _held.get(key) or (_kept(key) if key.version else None)
        if places is None:
            all_members = [member for member, _ in members(blob)]
            places = _places(all_members)
            remember(blob, key.container, all_members)
        if len(_held) == _MOST_HELD:
            _held.pop(next(iter(_held)))
        _held[key] = places
        return places


def _path(key: _Key) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    form = 2  # An index of form 1 had the last of two members with the same name.
    name = hashlib.blake2b(orjson.dumps([form, *key]), digest_size=16).hexdigest()
    return Path(cache, "video-pipeline", "tars", f"{name}.json")


def _kept(key: _Key) -> _Places | None:
    try:
        kept: _Places = orjson.loads(_path(key).read_bytes())
    except (OSError, ValueError, RuntimeError):  # RuntimeError: this user has no home.
        return None
    return kept if isinstance(kept, dict) else None


def _write(key: _Key, places: _Places) -> None:
    # If there is no folder for the cache, each process finds the members itself.
    with contextlib.suppress(OSError, RuntimeError, TypeError), replacing(_path(key)) as stream:
        stream.write(orjson.dumps(places))
