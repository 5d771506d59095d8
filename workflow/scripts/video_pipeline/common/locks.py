"""Locks on files, which name the process that holds them."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import Logger
from pathlib import Path
from typing import Any, TextIO

from video_pipeline.common.faults import failure_of
from video_pipeline.common.files import read_object
from video_pipeline.errors import UserError

_POLL_SECONDS = 1.0
_LOOKS = 10
"""``watch`` holds a lock for a moment when it looks whether somebody else does."""


def holder() -> dict[str, Any]:
    """The name of this process: host, pid and, on a cluster, the job."""
    process = {"host": socket.gethostname(), "pid": os.getpid()}
    job = os.environ.get("SLURM_JOB_ID")
    return {**process, "job": job} if job else process


def describe(process: Mapping[str, Any]) -> str:
    """``host h, process 12, job 7``: a :func:`holder` in words."""
    job = f", job {process['job']}" if "job" in process else ""
    return f"host {process['host']}, process {process['pid']}{job}"


def describe_holder(path: Path) -> str:
    """The process that locked ``path`` last, in words."""
    process = _read_holder(path)
    return describe(process) if process else "an unknown process"


def holder_lives(path: Path) -> bool:
    """Whether the process that locked ``path`` last may still be alive."""
    import psutil

    process = _read_holder(path)
    if process is None or process["host"] != socket.gethostname():
        return True
    try:
        return psutil.Process(process["pid"]).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _read_holder(path: Path) -> dict[str, Any] | None:
    process = read_object(path)
    is_whole = isinstance(process.get("host"), str) and isinstance(process.get("pid"), int)
    return process if is_whole else None


def try_lock(path: Path) -> TextIO | None:
    """Lock ``path`` for this process, or return None if another process holds the lock.

    The kernel frees the lock when the file is closed or the process is gone, however it ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open(path, "a+", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    stream.truncate(0)
    stream.write(json.dumps(holder()))
    stream.flush()
    return stream


def take_output(lock: Path, output: Path) -> TextIO:
    """Lock ``lock``, the run lock of ``output``, so that no other process changes the output.

    Raises :class:`UserError` naming the process that holds the lock, or the folder in which this
    process may not write.
    """
    try:
        for _ in range(_LOOKS):
            if (stream := try_lock(lock)) is not None:
                return stream
            time.sleep(0.05)
    except OSError as error:
        raise failure_of(
            error,
            f"data.output_jsonl: {os.path.abspath(output)} cannot be written: {error.strerror} "
            f"({error.filename or lock}). Make room there, or name another output in a folder in "
            "which files can be written and locked",
        ) from error
    raise UserError(
        f"another snakemake, retry or prune is at work on {output}: {describe_holder(lock)}. "
        "Wait for it or stop it, then run again."
    )


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on ``path``."""
    try:
        with open(path, encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def waiting_lock(path: Path, log: Logger) -> Iterator[bool]:
    """Wait for the lock on ``path``, and hold it within the block. Yields whether it waited."""
    stream = try_lock(path)
    waited = stream is None
    if waited:
        log.warning("waiting for %s, which is at work on this already", describe_holder(path))
    while stream is None:
        time.sleep(_POLL_SECONDS)
        stream = try_lock(path)
    with stream:
        yield waited
