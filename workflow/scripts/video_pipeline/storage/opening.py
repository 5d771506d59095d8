"""Resolves an address to a local path or to bytes; no other module does. The limits of this process
hold for each address (:mod:`video_pipeline.storage.access`)."""

from __future__ import annotations

from typing import BinaryIO

from video_pipeline.config.source import STORES, is_row, member_of, scheme_of, stable_address
from video_pipeline.storage import fetched, rows, tars
from video_pipeline.storage.access import Access, limits, permitted
from video_pipeline.storage.blobs import Blob, LocalBlob, save
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.http import HttpBlob
from video_pipeline.storage.stores import store_blob


def local_path(address: str, access: Access | None = None) -> str | None:
    """The path of a local file (``file://`` too); None if the bytes lie elsewhere. Raises
    :class:`VideoReadError` if it lies outside the allowed folders."""
    if scheme_of(address) not in ("", "file") or member_of(address) is not None:
        return None
    return permitted(address.removeprefix("file://"), access)


def open_blob(address: str, access: Access | None = None) -> Blob:
    """Open the bytes at ``address``: a local path, ``file://``, ``http(s)://`` or that of a store;
    or a member of a tar (``shard.tar#clips/a.mp4``) or a row of Parquet (``part.parquet#17:video``)
    that lies at one of them. ``access``: the limits, by default those of this process.

    Raises :class:`VideoReadError` if they may not be read.
    """
    access = access or limits()
    if (parts := member_of(address)) is not None:
        container, name = parts
        whole = open_blob(container, access)
        # Addresses that differ only in their signature name the same file, which is indexed once.
        stable = local_path(container, access) or stable_address(container)
        find = rows.row if is_row(address) else tars.member
        return find(whole, stable, name, access.max_download_bytes)
    if (path := local_path(address, access)) is not None:
        return LocalBlob(path)
    scheme = scheme_of(address)
    if scheme in ("http", "https"):
        return HttpBlob(address, access.max_download_bytes, access.allow_private_addresses)
    if scheme in STORES:
        return store_blob(address, access)
    raise VideoReadError(f"{scheme}:// is not read")


def is_remote(address: str) -> bool:
    """Whether the bytes at ``address`` come over the network."""
    container, _ = member_of(address) or (address, "")
    return scheme_of(container) not in ("", "file")


def copy_of(address: str, access: Access | None = None) -> BinaryIO:
    """The bytes at ``address`` as an open file without a name: the one that was fetched ahead, or a
    new copy. Arguments and errors are those of :func:`open_blob`."""
    if access is None and (file := fetched.opened(address)) is not None:
        return file
    access = access or limits()
    return save(open_blob(address, access), access.max_download_bytes)
