"""Replaces files at once, so that no process sees half of one, and seals their content."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

from video_pipeline.common.suggest import did_you_mean

_READ_BYTES = 1 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class Seal(NamedTuple):
    """The size and checksum of a file when it was written. It shows that a file is damaged, or
    another one, but not that it was forged."""

    num_bytes: int = 0
    crc32: int = 0

    def extended(self, data: bytes | memoryview) -> Seal:
        """The seal of the same bytes with ``data`` after them."""
        return Seal(self.num_bytes + len(data), crc32(data, self.crc32))

    @classmethod
    def of(cls, path: Path) -> Seal:
        """The seal of ``path`` as it is now."""
        seal = cls()
        with open(path, "rb", buffering=0) as stream:
            while data := stream.read(_READ_BYTES):
                seal = seal.extended(data)
        return seal

    def fits(self, path: Path) -> bool:
        """Whether ``path`` exists and holds the same bytes."""
        try:
            return path.stat().st_size == self.num_bytes and Seal.of(path) == self
        except FileNotFoundError:
            return False


EMPTY = Seal()
"""The seal of an empty file."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that replaces it when the block ends well.

    Several writers may do so at once, each with a temporary file of its own. The data is on the
    disk before the name is. An exception removes the temporary file.
    """
    make_folder(path.parent)
    temporary, stream = _open_temporary(path)
    try:
        with stream:
            yield stream
            sync(stream)
            temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _open_temporary(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside ``path``, locked as long as it is open: :func:`remove_leftovers` removes
    those without a lock, whose writers were killed."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        stream = open(temporary, "xb", buffering=1 << 20)
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return temporary, stream
        stream.close()  # Another process removed it as a leftover before it was locked.


def remove_leftovers(folder: Path, start: str = "") -> None:
    """Remove the temporary files that killed processes have left in ``folder``, for files whose
    names begin with ``start``."""
    for temporary in folder.iterdir():
        if not (temporary.name.startswith(f".{start}") and _TEMPORARY.fullmatch(temporary.name)):
            continue
        try:
            with open(temporary, "rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                temporary.unlink()
        except OSError:
            continue  # It was renamed, its writer is alive, or it belongs to another user.


def sync(stream: BinaryIO) -> None:
    """Flush what was written to ``stream`` to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk, so that a new one survives a power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Some file systems cannot do that.
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make the folder ``path``, and those above it that are missing; they survive a power loss."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def is_newer(path: Path, than: float) -> bool:
    """Whether ``path`` exists and was written at the time ``than`` or later."""
    try:
        return path.stat().st_mtime >= than
    except FileNotFoundError:
        return False


def why_not_there(path: Path, kind: str = "file") -> str:
    """Why no ``kind`` (file, folder, file or folder) can be read at ``path``: its absolute path
    and the most similar one that exists. Empty if one can be read."""
    absolute = os.path.abspath(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return f"{absolute} is a link to {os.readlink(path)}, which does not exist"
        return f"{absolute} does not exist{_similar_path(absolute)}"
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        return f"{absolute!r} cannot be read: {error}"
    if kind == "file" and not stat.S_ISREG(mode):
        return f"{absolute} is not a file" + (", but a folder" if stat.S_ISDIR(mode) else "")
    if kind == "folder" and not stat.S_ISDIR(mode):
        return f"{absolute} is not a folder"
    if not os.access(path, os.R_OK):
        return f"{absolute} cannot be read: {os.strerror(errno.EACCES)}"
    return ""


def _similar_path(absolute: str) -> str:
    """``; did you mean /data/samples.jsonl?``, for a path that does not exist: the first part that
    is missing is replaced by the most similar name beside it. Empty if no name is similar."""
    cwd = Path.cwd()
    if absolute.startswith(f"{cwd}/~"):  # The shell replaces ~, a configuration file does not.
        home = os.path.expanduser(absolute.removeprefix(f"{cwd}/"))
        return f"; did you mean {home}?" if os.path.exists(home) else ""
    parent, name, below = *os.path.split(absolute), ""
    while not os.path.isdir(parent):
        (parent, name), below = os.path.split(parent), os.path.join(name, below)
    try:
        names = {entry.casefold(): entry for entry in os.listdir(parent)}
    except OSError:
        return ""

    def path_of(close: str) -> str:
        similar = os.path.join(parent, names[close])
        whole = os.path.join(similar, below).rstrip("/")
        return whole if os.path.exists(whole) else similar

    return did_you_mean(name.casefold(), names, show=path_of)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty object if the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` by ``text``, at once."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``path`` that replaces it when the block ends well.

    Only one process at a time may do so, because it first removes what a killed process has left.
    The files are on the disk before the name is. An exception removes the temporary folder.
    """
    path = path.resolve()  # A link stays: somebody wants the folder on another disk.
    temporary = path.with_name(f".{path.name}.tmp")
    former = path.with_name(f".{path.name}.former")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(path.parent)
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        shutil.rmtree(former, ignore_errors=True)
        if path.exists():
            path.rename(former)
        temporary.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_tree(folder: Path) -> None:
    """Flush all files under ``folder``, and their names, to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(parent))
