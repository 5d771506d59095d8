"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that takes its place when the block ends well.

    The data is on the disk before the name is; an exception removes the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb", buffering=1 << 20) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_newer(path: Path, than: float) -> bool:
    """Whether ``path`` is there and was written at the time ``than`` or later."""
    try:
        return path.stat().st_mtime >= than
    except FileNotFoundError:
        return False


def why_not_there(path: Path, kind: str = "file") -> str:
    """Why no ``kind`` (file, folder, file or folder) can be read at ``path``: its absolute path
    and the nearest name that is there. Empty if one can."""
    absolute = os.path.abspath(path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return f"{absolute} is a link to {os.readlink(path)}, which does not exist"
        near = nearest_path(absolute)
        return f"{absolute} does not exist" + (f"; did you mean {near}?" if near else "")
    except OSError as error:
        return f"{absolute} cannot be read: {error.strerror}"
    if kind == "file" and not stat.S_ISREG(mode):
        return f"{absolute} is not a file" + (", but a folder" if stat.S_ISDIR(mode) else "")
    if kind == "folder" and not stat.S_ISDIR(mode):
        return f"{absolute} is not a folder"
    if not os.access(path, os.R_OK):
        return f"{absolute} cannot be read: {os.strerror(errno.EACCES)}"
    return ""


def nearest_path(absolute: str) -> str | None:
    """The existing path that is most like one that does not exist: its first part that is not there
    is replaced by the most similar name beside it. None if there is none."""
    cwd = os.getcwd()
    if absolute.startswith(f"{cwd}/~"):  # the shell replaces ~, a configuration file does not
        home = os.path.expanduser(absolute.removeprefix(f"{cwd}/"))
        return home if os.path.exists(home) else None
    parent, name, rest = *os.path.split(absolute), ""
    while not os.path.isdir(parent):
        (parent, name), rest = os.path.split(parent), os.path.join(name, rest)
    try:
        names = {entry.casefold(): entry for entry in os.listdir(parent)}
    except OSError:
        return None
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    if not close:
        return None
    found = os.path.join(parent, names[close[0]])
    whole = os.path.join(found, rest).rstrip("/")
    return whole if os.path.exists(whole) else found


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``, at once."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder beside ``path`` that takes its place when the block ends well.

    One process at a time may do so: what a killed one has left is removed first. Files are on the
    disk before the name is; an exception removes the temporary folder.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    former = path.with_name(f".{path.name}.former")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as stream:
                    os.fsync(stream.fileno())
        shutil.rmtree(former, ignore_errors=True)
        if path.exists():
            path.rename(former)
        temporary.rename(path)
        shutil.rmtree(former, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
