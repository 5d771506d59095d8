"""Local paths, addresses, and the kind of input that a name stands for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

STORES = ("s3", "gs", "az", "hf")
"""Schemes of stores: their objects can be listed, and patterns match them."""

COMPRESSIONS = (".gz", ".zst")

Kind = Literal["jsonl", "txt", "csv", "tsv", "parquet", "tar", "video", "folder", "pattern"]

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""Files of a folder and members of a tar that are taken for videos."""

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of buckets. Some stores make them a part of the host's name."""

DATASET = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+))?",
    re.ASCII,
)
"""A dataset of the Hugging Face hub, or a folder in it."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MEMBER = re.compile(r"(.*?\.(?:tar|parquet)(?:\?[^#]*)?)#(.+)", re.IGNORECASE | re.DOTALL)
_FORMS: dict[str, Kind] = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".tar": "tar",
}


def scheme_of(place: str) -> str:
    """The scheme of an address in lower case; empty for a local path."""
    match = _SCHEME.match(place)
    return match.group().removesuffix("://").lower() if match else ""


def member_of(address: str) -> tuple[str, str] | None:
    """The container and the member that ``address`` names, as in ``shard.tar#clips/a.mp4`` and
    ``part.parquet#17:video``; None if it names none."""
    match = _MEMBER.fullmatch(address) if "#" in address else None
    return (match[1], match[2]) if match else None


def is_row(address: str) -> bool:
    """Whether ``address`` names a row of Parquet, and no member of a tar."""
    container, _ = member_of(address) or ("", "")
    if scheme_of(container):
        container = container.partition("?")[0]
    return container.lower().endswith(".parquet")


def file_path(address: str) -> str | None:
    """The path that a ``file://`` on this machine names; None for any other address."""
    if scheme_of(address) != "file" or urlsplit(address).netloc not in ("", "localhost"):
        return None
    return unquote(urlsplit(address).path)


def folder_of_pattern(pattern: str) -> str:
    """The part of a pattern that names a folder."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]) or ("/" if pattern.startswith("/") else ".")


def tidy(place: object) -> object:
    """A local path as ``pathlib`` writes it (also that of a ``file://`` on this machine), an
    address as it is."""
    if isinstance(place, Path):
        return str(place)
    if not isinstance(place, str):
        raise PydanticCustomError("path_type", "a path")
    place = file_path(place) or place
    if (home := os.path.expanduser(place)) != place:
        raise PydanticCustomError("home", "{home}, because only a shell replaces ~", {"home": home})
    return place if scheme_of(place) else str(Path(place))


Place = Annotated[str, BeforeValidator(tidy)]
"""A local path, or an address."""


def absolute(place: str) -> str:
    """``place`` as an absolute path; an address as it is."""
    return place if scheme_of(place) else str(Path(place).absolute())


def shown(place: str) -> str:
    """``place`` as messages show it. A local path is absolute. An http address has no user, no
    password and no query, which may hold a signature."""
    if scheme_of(place) not in ("http", "https"):
        return absolute(place)
    try:
        parts = urlsplit(place)
    except ValueError:
        return "an address that is not valid"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


_SIGNED_FAMILIES = ("x-amz-", "x-goog-")
_SIGNATURES = frozenset({"signature", "sig", "token", "access_token"})
_SIGNED_WITH = frozenset(
    {
        *("awsaccesskeyid", "googleaccessid", "expires", "policy", "key-pair-id"),
        *("sv", "ss", "srt", "sr", "st", "se", "sp", "sip", "spr", "si", "sdd", "saoid", "suoid"),
        *("scid", "skoid", "sktid", "skt", "ske", "sks", "skv"),
    }
)
"""Other names in the query of a signed address, in lower case: S3 and Google Cloud Storage (version
2), CloudFront, and Azure (learn.microsoft.com/rest/api/storageservices/create-service-sas,
create-user-delegation-sas)."""

_USER = re.compile(r"^(https?://)[^/?#]*@", re.IGNORECASE)


def stable_address(video: Any) -> Any:
    """An http address ``video`` without the user, the password, and the signature or token in its
    query: with others it names the same video. Also of a list; anything else as it is."""
    if isinstance(video, list):
        stable = [stable_address(entry) for entry in video]
        return video if stable == video else stable
    if not isinstance(video, str) or video[:4].lower() != "http":
        return video
    video = _USER.sub(r"\1", video)
    if "?" not in video:
        return video
    start, _, query = video.partition("?")
    query, mark, fragment = query.partition("#")
    pairs = [(pair.partition("=")[0].lower(), pair) for pair in query.split("&")]
    if not any(name in _SIGNATURES or name.startswith(_SIGNED_FAMILIES) for name, _ in pairs):
        return video
    dropped = _SIGNATURES | _SIGNED_WITH
    kept = [p for name, p in pairs if name not in dropped and not name.startswith(_SIGNED_FAMILIES)]
    return start + ("?" if kept else "") + "&".join(kept) + mark + fragment


def check_folder(place: str) -> None:
    """Raise :class:`ValueError` if ``place`` is no local folder and no folder of a store."""
    scheme, (bucket, *folders) = scheme_of(place), place.partition("://")[2].split("/")
    if not scheme:
        return
    known = ", ".join(f"{store}://" for store in STORES)
    if scheme not in STORES:
        raise ValueError(f"{place!r:.200}: expected a local folder, or one at {known}")
    if scheme == "hf":
        if not DATASET.fullmatch(place):
            raise ValueError(f"{place!r:.200}: expected hf://datasets/owner/name")
    elif not BUCKET.fullmatch(bucket):
        raise ValueError(
            f"{place!r:.200}: expected {scheme}://bucket/folder, without user, port or query"
        )
    if not {"", ".", ".."}.isdisjoint(folders) or any(mark in place for mark in "?#"):
        raise ValueError(f"{place!r:.200}: an empty name, `.`, `..`, `?` or `#` names no folder")


@dataclass(frozen=True)
class Source:
    """What ``data.input_jsonl`` names."""

    place: str

    @property
    def name(self) -> str:
        """The name in messages: a path as it was given, an address without its secrets."""
        return self.place if self.is_local else shown(self.place)

    @property
    def is_local(self) -> bool:
        """Whether it lies in the file system."""
        return not scheme_of(self.place)

    @property
    def compression(self) -> str:
        """``.gz``, ``.zst`` or nothing."""
        suffix = PurePosixPath(self._path).suffix.lower()
        return suffix if suffix in COMPRESSIONS else ""

    @cached_property
    def kind(self) -> Kind:
        """What it is. The name tells, but for a local folder, and a local file whose name looks
        like a pattern: these are looked up in the file system."""
        scheme, path = scheme_of(self.place), self._path
        if not scheme and os.path.isdir(path):
            return "folder"
        if has_magic(path) and (scheme in STORES or not (scheme or os.path.exists(path))):
            return "pattern"
        is_repository = scheme == "hf" and path.count("/") <= 4  # hf://datasets/owner/name
        if scheme in STORES and (is_repository or "." not in path.rpartition("/")[2]):
            return "folder"
        name = path.lower()
        for compression in COMPRESSIONS:
            name = name.removesuffix(compression)
        suffix = PurePosixPath(name).suffix
        is_video = suffix in VIDEO_SUFFIXES and not self.compression
        return "video" if is_video else _FORMS.get(suffix, "jsonl")

    @property
    def is_file(self) -> bool:
        """Whether it names one file."""
        return self.kind not in ("folder", "pattern")

    @property
    def root(self) -> str:
        """The folder that relative paths in it start from: the folder of the file, the folder
        itself, or the part of a pattern that names a folder."""
        if self.kind == "folder":
            return self.place.rstrip("/") or "/"
        if self.kind == "pattern":
            return folder_of_pattern(self.place)
        if self.is_local:
            return str(Path(self.place).parent)
        return urlsplit(self.place)._replace(query="", fragment="").geturl().rpartition("/")[0]

    @property
    def _path(self) -> str:
        """Its path, without the query of an http address."""
        if scheme_of(self.place) in ("http", "https"):
            return urlsplit(self.place).path
        return self.place
