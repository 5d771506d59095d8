"""Leases GPUs: each local job has GPUs of its own.

A lease is a lock (``flock``) on a file named after the GPU's UUID, in a folder that all users of
the machine share. The job holds the lock, and so does every process of the engine that can hold the
GPU (:func:`hold_lease`); the kernel frees it when the last of them is gone, however they ended.
Jobs choose one after the other, so that each gets all GPUs that it needs, or none.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TextIO

from video_pipeline.common.locks import describe_holder, holder, holder_lives
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.gpu.devices import (
    VISIBLE,
    Device,
    check_count,
    devices,
    gpus_needed,
    memory_usage,
    processes_on,
)

logger = logging.getLogger(__name__)

ORDER = "CUDA_DEVICE_ORDER"

LEASE = "VIDEO_PIPELINE_LEASE"
"""Environment variable of the engine's processes: id and lock files of the job's lease."""

FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
"""The folder of the lock files, the same for every user. Nothing removes old files in ``/dev/shm``,
as happens in ``/tmp``, and containers that share that of the host (``--ipc=host``) share the leases
too."""

LOOK_SECONDS = 5.0
"""How often a waiting job looks again: nvidia-smi may take a second of a core."""

MESSAGE_SECONDS = 60.0
"""How often a waiting job logs what it waits for."""

_TURN_SECONDS = 0.1

MEMORY_SHARE = 0.92
"""``gpu_memory_utilization`` of vLLM 0.32 if it is not set. vLLM does not start on a GPU that has
less than this share of its memory free."""

DRIVER_MIB = 1024
"""A GPU with less memory than this in use is idle: the driver itself uses some hundred MiB."""


@contextmanager
def lease(count: int, memory_share: float = MEMORY_SHARE) -> Iterator[list[Device]]:
    """Hold GPUs, and show only them to this process and its children.

    Waits until enough GPUs are free: not leased, and with enough free memory. Does nothing without
    a GPU, and in a cluster's job that knows its GPUs by number only: other jobs may use the same
    numbers for other GPUs.

    Args:
        count: How many GPUs, all or none; 0 leases nothing.
        memory_share: The share of a GPU's memory that must be free.

    Yields:
        The leased GPUs, in the order in which they are shown.

    Raises:
        UserError: There are fewer than ``count`` GPUs.
    """
    candidates = devices() if count else []
    if "SLURM_JOB_ID" in os.environ and any(device.uuid.isdigit() for device in candidates):
        candidates = []
    if not candidates:
        yield []
        return
    check_count(candidates, count)
    token = uuid.uuid4().hex
    locks = _wait_for(candidates, count, memory_share, token)
    logger.info("GPU %s", ", ".join(map(str, locks)))
    environment = {
        VISIBLE: ",".join(device.name for device in locks),
        ORDER: "PCI_BUS_ID",  # Then the numbers are nvidia-smi's, whose UUIDs were locked.
        LEASE: json.dumps([token, *(str(lock_file(device)) for device in locks)]),
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield list(locks)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for lock in locks.values():
            lock.close()


def lease_for(config: Config) -> AbstractContextManager[list[Device]]:
    """The :func:`lease` of one inference job."""
    share = config.vllm.number("gpu_memory_utilization", MEMORY_SHARE)
    return lease(gpus_needed(config), share)


_held: list[TextIO] = []


def hold_lease() -> None:
    """In a process of the engine, before it uses a GPU: hold the job's lease too, until this
    process is gone. A spawned process inherits no lock, so it takes a lock of its own, shared with
    the job. Raises :class:`RuntimeError` if the job is gone: another job may have the GPUs."""
    token, *paths = json.loads(os.environ.get(LEASE, "[null]"))
    for path in paths:
        lock = _open(Path(path))
        if not _try_flock(lock, fcntl.LOCK_SH) or _token(lock) != token:
            raise RuntimeError("the job that started this process is gone, and its GPU lease too")
        _held.append(lock)


class LeaseHolder:
    """A base class for vLLM's workers (``worker_extension_cls``), the processes that use the GPUs:
    each calls :func:`hold_lease` first."""

    def __new__(cls, *_: Any, **__: Any) -> LeaseHolder:
        hold_lease()
        return super().__new__(cls)


def lock_file(device: Device) -> Path:
    """The file whose lock is the lease of this GPU."""
    return FOLDER / f"video-pipeline.gpu.{device.uuid.replace('/', '_')}.lock"


def _wait_for(
    candidates: list[Device], count: int, memory_share: float, token: str
) -> dict[Device, TextIO]:
    next_message = 0.0
    while True:
        locks, refused = _try_lease(candidates, count, memory_share, token)
        reasons = "; ".join(f"GPU {device}, {reason}" for device, reason in refused.items())
        if locks:
            if reasons:
                logger.info("passed over: %s", reasons)
            return locks
        if time.monotonic() >= next_message:
            next_message = time.monotonic() + MESSAGE_SECONDS
            logger.warning("waiting for %d GPU(s): %s", count, reasons)
        time.sleep(LOOK_SECONDS)


def _try_lease(
    candidates: list[Device], count: int, memory_share: float, token: str
) -> tuple[dict[Device, TextIO], dict[Device, str]]:
    """The locks of ``count`` GPUs, or none, and why the others are refused."""
    free: dict[Device, TextIO] = {}
    leased: dict[Device, TextIO] = {}
    refused: dict[Device, str] = {}
    with _turn():
        try:
            for device in candidates:
                lock = _open(lock_file(device))
                if _try_flock(lock, fcntl.LOCK_EX):
                    free[device] = lock
                else:
                    lock.close()
                    refused[device] = _leased_by(device)
            memory = memory_usage() if len(free) >= count else {}
            busy = {
                device: memory[device.uuid]
                for device in free
                if device.uuid in memory and memory[device.uuid].used >= DRIVER_MIB
            }
            for device, usage in busy.items():
                if usage.free < memory_share * usage.total:
                    users = processes_on(device.uuid)
                    words = [f"{usage.used} of {usage.total} MiB", *users]
                    refused[device] = f"in use by others: {', '.join(words)}"
            usable = [device for device in free if device not in refused]
            if len(usable) >= count:
                usable.sort(key=busy.__contains__)  # Idle GPUs come first.
                leased = {device: free[device] for device in usable[:count]}
                for lock in leased.values():
                    _write_holder(lock, lease=token)
                    # The engine's processes share the lock; another job needs it exclusively.
                    fcntl.flock(lock, fcntl.LOCK_SH)
        finally:
            for device, lock in free.items():
                if device not in leased:
                    lock.close()
    return leased, refused


@contextmanager
def _turn() -> Iterator[None]:
    """Be the only job of this machine that chooses GPUs, within the block. The job whose turn it is
    may hang, so a waiting job logs its name."""
    path = FOLDER / "video-pipeline.gpu.lock"
    next_message = time.monotonic() + LOOK_SECONDS  # A turn takes some seconds.
    with _open(path) as turn:
        while not _try_flock(turn, fcntl.LOCK_EX):
            if time.monotonic() >= next_message:
                next_message = time.monotonic() + MESSAGE_SECONDS
                logger.warning(
                    "waiting for the turn to choose a GPU, which %s has (%s); if it hangs, stop it",
                    *(describe_holder(path), path),
                )
            time.sleep(_TURN_SECONDS)
        _write_holder(turn)
        yield


def _leased_by(device: Device) -> str:
    """The holder of the lease, in words."""
    path = lock_file(device)
    gone = f", which is gone, but its engine is not: see `fuser -v {path}`"
    return f"leased by {describe_holder(path)}{'' if holder_lives(path) else gone}"


def _write_holder(lock: TextIO, **more: str) -> None:
    lock.truncate(0)
    lock.seek(0)
    lock.write(json.dumps({**holder(), **more}))
    lock.flush()


def _token(lock: TextIO) -> object:
    """The id of the lease in a lock file; None if it has none."""
    lock.seek(0)
    try:
        return json.loads(lock.read()).get("lease")
    except (ValueError, AttributeError):
        return None


def _try_flock(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> TextIO:
    """Open a lock file, which all users share. Links are never followed. ``O_CREAT`` is only for
    new files: the kernel may forbid it for a file of another user (``fs.protected_regular``)."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(descriptor, 0o666)  # The umask does not matter.
        except FileExistsError:
            descriptor = os.open(path, flags)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise OSError(0, "it is a link, or no plain file")
    except OSError as error:
        raise UserError(
            f"cannot use the lock file of a GPU, {path}: {error.strerror}. See who made it, and "
            "remove it while no job runs"
        ) from error
    return open(descriptor, "r+", encoding="utf-8")
