"""Decides which files may be read.

A list of videos may come from elsewhere, so its names decide nothing. The limits decide, which
:func:`limit_access` sets for the process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from video_pipeline.config import Data
from video_pipeline.config.source import scheme_of
from video_pipeline.storage.errors import VideoReadError


@dataclass(frozen=True)
class Access:
    """The limits for reading.

    Attributes:
        roots: Real paths of the folders that local files must lie in, and addresses that objects of
            stores must begin with; None: anywhere.
        max_download_bytes: Size of the largest file that is downloaded, or taken out of a tar or a
            Parquet file.
        allow_private_addresses: Whether hosts that are not on the public internet are asked.
    """

    roots: tuple[str, ...] | None
    max_download_bytes: int
    allow_private_addresses: bool

    @classmethod
    def of(cls, data: Data) -> Access:
        """The limits in the section ``data``. Relative roots are those of the working directory."""
        roots = data.allowed_roots
        return cls(
            roots=None if roots is None else tuple(map(_real, roots)),
            max_download_bytes=int(data.max_download_gb * 1e9),
            allow_private_addresses=data.allow_private_addresses,
        )


def _real(root: str) -> str:
    return f"{root.rstrip('/')}/" if scheme_of(root) else os.path.realpath(root)


_access = Access.of(Data.model_validate({}))


def limit_access(access: Access) -> None:
    """Set the limits of this process. Until then, those of the default configuration hold."""
    global _access
    _access = access


def limits() -> Access:
    """The limits of this process."""
    return _access


TRUSTED = Access(roots=None, max_download_bytes=1 << 40, allow_private_addresses=True)
"""The limits for paths and addresses in the configuration itself."""


def permitted(path: str, access: Access | None = None) -> str:
    """A local ``path``, or its real path if there are roots. Raises :class:`VideoReadError` if it
    lies outside all of them, after links and ``..`` were followed."""
    if "\0" in path:
        raise VideoReadError("its path holds a NUL character, which no file name can")
    roots = (access or _access).roots
    if roots is None:
        return path
    real = os.path.realpath(path)
    local = (root for root in roots if not scheme_of(root))
    if not any(os.path.commonpath([real, root]) == root for root in local):
        raise VideoReadError("lies outside the folders of data.allowed_roots (links are followed)")
    return real


def check_object(address: str, access: Access) -> None:
    """Raise :class:`VideoReadError` if there are roots, and the object of a store at ``address``
    lies under none of them: it is read with the user's own credentials."""
    parts = address.split("/")
    if ".." in parts or "." in parts:
        raise VideoReadError("its address holds `..` or `.`, which stores do not follow")
    if access.roots is not None and not address.startswith(access.roots):
        raise VideoReadError("lies outside the addresses of data.allowed_roots")
