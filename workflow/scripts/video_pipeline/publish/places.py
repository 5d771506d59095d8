"""Places to publish to: folders of the file system and of stores.

A file counts as published if the place holds the same bytes. The place's own checksum tells that;
without a checksum the bytes are read back.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import obstore

from video_pipeline.common.files import remove_leftovers, replacing
from video_pipeline.config.source import DATASET, scheme_of
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.stores import explained, key_of, store_of

if TYPE_CHECKING:
    from huggingface_hub import RepoFile
    from obstore import ObjectMeta

_READ_BYTES = 1 << 20
_PART_BYTES = 16 << 20
_MAX_PARTS = 10_000
"""S3 and Azure refuse more parts."""
_CONNECTIONS = 8


@dataclass(frozen=True)
class Published:
    """A file to publish.

    Attributes:
        name: Its path in the folder that it is published to.
        path: Its path here.
    """

    name: str
    path: Path

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Hex digits."""
        return _hash(self.path, hashlib.sha256)

    @property
    def part_bytes(self) -> int:
        """The size of a part, if the file is sent in several."""
        return max(_PART_BYTES, -(-self.size // _MAX_PARTS))

    @cached_property
    def e_tags(self) -> set[str]:
        """The tags that S3 gives these bytes, unless it encrypts them with the user's own key: the
        MD5 of an object, or that of the MD5s of the parts that it was sent in
        (https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html)."""
        whole, parts = hashlib.md5(usedforsecurity=False), []
        with open(self.path, "rb") as stream:
            while part := stream.read(self.part_bytes):
                whole.update(part)
                parts.append(hashlib.md5(part, usedforsecurity=False).digest())
        of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
        return {f'"{whole.hexdigest()}"', f'"{of_parts}-{len(parts)}"'}

    @cached_property
    def blob_id(self) -> str:
        """The name that git gives these bytes."""
        start = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        return _hash(self.path, start.copy)


class Place(ABC):
    """A folder to publish to. All names are relative to it, with ``/``. Methods raise
    :class:`OSError` or :class:`VideoReadError`."""

    @abstractmethod
    def names(self, folder: str) -> Iterator[str]:
        """The names of the files in ``folder`` and below, in any order."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def holds(self, file: Published) -> bool:
        """Whether the place has ``file``, with the same bytes."""

    @abstractmethod
    def update(
        self, files: Sequence[Published], stale: Sequence[str], title: str
    ) -> Iterator[Published]:
        """Send ``files`` and remove ``stale``; yield each file when it has arrived.

        Args:
            files: The files, in the order in which they appear, each when it is complete.
            stale: Names of files to remove before the last of ``files`` appears.
            title: A title for the change.
        """

    def _check(self, file: Published) -> None:
        if not self.holds(file):
            raise NotAsSent(f"what arrived as {file.name} is not what was sent")


class NotAsSent(ConnectionError):
    """A place holds other bytes than those that were sent to it."""


class _FileByFile(Place):
    """A place that gets its files one after the other."""

    def update(
        self, files: Sequence[Published], stale: Sequence[str], title: str
    ) -> Iterator[Published]:
        yield from self._arrived(files[:-1])
        for name in stale:
            self._remove(name)
        yield from self._arrived(files[-1:])

    def _arrived(self, files: Sequence[Published]) -> Iterator[Published]:
        for file in files:
            self._send(file)
            self._check(file)
            yield file

    @abstractmethod
    def _send(self, file: Published) -> None: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


class Folder(_FileByFile):
    """A folder of the file system."""

    def __init__(self, place: str) -> None:
        self._root = Path(place)

    def names(self, folder: str) -> Iterator[str]:
        for path in (self._root / folder).rglob("*"):
            yield path.relative_to(self._root).as_posix()

    def has(self, name: str) -> bool:
        return (self._root / name).exists()

    def holds(self, file: Published) -> bool:
        path = self._root / file.name
        try:
            return path.stat().st_size == file.size and _hash(path, hashlib.sha256) == file.sha256
        except FileNotFoundError:
            return False

    def _send(self, file: Published) -> None:
        path = self._root / file.name
        with open(file.path, "rb") as source, replacing(path) as target:
            shutil.copyfileobj(source, target, _READ_BYTES)
        remove_leftovers(path.parent, path.name)

    def _remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)


class Bucket(_FileByFile):
    """A folder of S3, Google Cloud Storage or Azure. The client tries again after the statuses 429
    and 5xx, and after a broken connection."""

    def __init__(self, place: str) -> None:
        self._store, key = store_of(place), key_of(place)
        self._root = f"{key}/" if key else ""

    def names(self, folder: str) -> Iterator[str]:
        with explained():
            for batch in obstore.list(self._store, f"{self._root}{folder}"):
                yield from (meta["path"].removeprefix(self._root) for meta in batch)

    def has(self, name: str) -> bool:
        return self._head(name) is not None

    def _head(self, name: str) -> ObjectMeta | None:
        with explained():
            try:
                return obstore.head(self._store, self._root + name)
            except FileNotFoundError:
                return None

    def holds(self, file: Published) -> bool:
        meta = self._head(file.name)
        if meta is None or meta["size"] != file.size:
            return False
        if meta["e_tag"] in file.e_tags:
            return True
        with explained():
            checksum = hashlib.sha256()
            for piece in obstore.get(self._store, self._root + file.name).stream():
                checksum.update(piece)
            return checksum.hexdigest() == file.sha256

    def _send(self, file: Published) -> None:
        with explained():
            try:
                obstore.put(
                    self._store,
                    self._root + file.name,
                    file.path,
                    chunk_size=file.part_bytes,
                    max_concurrency=_CONNECTIONS,
                )
            except FileNotFoundError:
                raise VideoReadError("there is no such bucket") from None

    def _remove(self, name: str) -> None:
        with explained(), suppress(FileNotFoundError):
            obstore.delete(self._store, self._root + name)


class Dataset(Place):
    """A dataset of the Hugging Face hub, or a folder in it. One commit has all changes. A missing
    dataset is made, as a private one. The client sends no data that the hub has already."""

    def __init__(self, place: str) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        # Its log lines have the signed addresses that data is sent to.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        match = DATASET.fullmatch(place)
        assert match is not None, place  # The configuration was checked.
        revision = match["revision"]
        self._hub = HfApi()
        self._repo: dict[str, Any] = {
            "repo_id": match["repo"],
            "repo_type": "dataset",
            "revision": unquote(revision) if revision else "main",
        }
        self._root = f"{match['folder']}/" if match["folder"] else ""

    @cached_property
    def _repo_files(self) -> dict[str, RepoFile]:
        from huggingface_hub import RepoFile
        from huggingface_hub.errors import RepositoryNotFoundError

        with explained():
            try:
                tree = list(self._hub.list_repo_tree(**self._repo, recursive=True))
            except RepositoryNotFoundError:
                self._hub.create_repo(self._repo["repo_id"], repo_type="dataset", private=True)
                tree = list(self._hub.list_repo_tree(**self._repo, recursive=True))
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def names(self, folder: str) -> Iterator[str]:
        start = f"{self._root}{folder}/"
        paths = (path for path in self._repo_files if path.startswith(start))
        return (path.removeprefix(self._root) for path in paths)

    def has(self, name: str) -> bool:
        return self._root + name in self._repo_files

    def holds(self, file: Published) -> bool:
        repo_file = self._repo_files.get(self._root + file.name)
        if repo_file is None or repo_file.size != file.size:
            return False
        if repo_file.lfs is not None:
            return bool(repo_file.lfs.sha256 == file.sha256)
        return bool(repo_file.blob_id == file.blob_id)

    def update(
        self, files: Sequence[Published], stale: Sequence[str], title: str
    ) -> Iterator[Published]:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [
            *(CommitOperationAdd(self._root + file.name, file.path) for file in files),
            *(CommitOperationDelete(self._root + name) for name in stale),
        ]
        if not operations:
            return
        with explained():
            self._hub.create_commit(**self._repo, operations=operations, commit_message=title)
        del self._repo_files  # The hub is asked again.
        for file in files:
            self._check(file)
            yield file


def open_place(place: str) -> Place:
    """The folder that an entry of ``run.publish`` names."""
    kinds: dict[str, type[Folder | Bucket | Dataset]] = {"": Folder, "hf": Dataset}
    return kinds.get(scheme_of(place), Bucket)(place)


def _hash(path: Path, begun: Callable[[], Any]) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, begun).hexdigest()
