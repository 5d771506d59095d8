"""Leases: each local job gets devices of its own.

A device is leased by a lock on a file named after it, in a folder that all jobs of a user on this
machine share; the kernel frees the lock when its holder is gone.
"""

from __future__ import annotations

import getpass
import itertools
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from video_pipeline.errors import UserError
from video_pipeline.locks import describe_holder, try_lock

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"

_POLL_SECONDS = 1.0
_DEVICE = re.compile(r"\d+|(GPU|MIG)-\S+")


def devices() -> list[str]:
    """The devices this process may use: ids or UUIDs, empty on a machine without a GPU."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        ids = (device.strip() for device in visible.split(","))
        # CUDA's rule: what follows the first id that is none is hidden, too
        return list(itertools.takewhile(_DEVICE.fullmatch, ids))
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return listed.stdout.split()


@contextmanager
def lease(count: int) -> Iterator[list[str]]:
    """Hold ``count`` devices, all or none, and show only them to this process and its children.

    Waits until as many are free. Without a GPU, and on a cluster, where the scheduler has done
    this already, it does nothing.

    Raises :class:`UserError` if there are fewer than ``count`` devices.
    """
    candidates = [] if "SLURM_JOB_ID" in os.environ else devices()
    if not candidates:
        yield []
        return
    if len(candidates) < count:
        raise UserError(
            f"one inference job needs {count} GPUs, but this process may use only "
            f"{len(candidates)}: {', '.join(candidates)}"
        )
    locks = _wait_for(candidates, count)
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(locks)
    logger.info("GPU %s", os.environ[VISIBLE])
    try:
        yield list(locks)
    finally:
        if before is None:
            del os.environ[VISIBLE]
        else:
            os.environ[VISIBLE] = before
        for lock in locks.values():
            lock.close()


def _wait_for(candidates: list[str], count: int) -> dict[str, TextIO]:
    waiting = False
    while True:
        held = _try_lease(candidates, count)
        if held:
            return held
        if not waiting:
            waiting = True
            holders = {describe_holder(_lock_file(device)) for device in candidates}
            logger.info(
                "waiting for %d of the GPUs %s, held by %s",
                count,
                ", ".join(candidates),
                "; ".join(sorted(holders)),
            )
        time.sleep(_POLL_SECONDS)


def _try_lease(candidates: list[str], count: int) -> dict[str, TextIO]:
    held: dict[str, TextIO] = {}
    for device in candidates:
        lock = try_lock(_lock_file(device))
        if lock is not None:
            held[device] = lock
        if len(held) == count:
            return held
    for lock in held.values():
        lock.close()
    return {}


def _lock_file(device: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"video-pipeline-gpus-{getpass.getuser()}"
    return folder / f"{device.replace('/', '_')}.lock"
