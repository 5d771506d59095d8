"""Locks on files that say who holds them."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from video_pipeline.errors import UserError

_POLL_SECONDS = 1.0


def holder() -> dict[str, Any]:
    """Who this process is: host, pid and, on a cluster, the job."""
    who = {"host": socket.gethostname(), "pid": os.getpid()}
    job = os.environ.get("SLURM_JOB_ID")
    return {**who, "job": job} if job else who


def describe_holder(path: Path) -> str:
    """``host h, process 12, job 7`` of the process that locked ``path`` last."""
    who = _read_holder(path)
    if who is None:
        return "an unknown process"
    job = f", job {who['job']}" if "job" in who else ""
    return f"host {who['host']}, process {who['pid']}{job}"


def holder_lives(path: Path) -> bool:
    """Whether the process that locked ``path`` last may still be there."""
    import psutil

    who = _read_holder(path)
    return who is None or who["host"] != socket.gethostname() or psutil.pid_exists(who["pid"])


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return who if isinstance(who["host"], str) and isinstance(who["pid"], int) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def try_lock(path: Path) -> TextIO | None:
    """Lock ``path`` for this process, or return None if another process holds it.

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
    """Lock ``lock``, the run lock of ``output``, so that nobody else changes what is there.

    Raises :class:`UserError` naming who does so now.
    """
    stream = try_lock(lock)
    if stream is None:
        raise UserError(
            f"another snakemake, retry or prune is at work on {output}: {describe_holder(lock)}. "
            "Wait for it or stop it, then run again."
        )
    return stream


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
def waiting_lock(path: Path, log: Any) -> Iterator[bool]:
    """Hold the lock on ``path``, waiting for it if need be; yields whether it had to wait."""
    stream = try_lock(path)
    waited = stream is None
    if waited:
        log.warning("waiting for %s, which is at work on this already", describe_holder(path))
    while stream is None:
        time.sleep(_POLL_SECONDS)
        stream = try_lock(path)
    with stream:
        yield waited
