"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import shutil
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
