"""Finds the GPUs that this process may use, and compares them with what inference jobs need.

nvidia-smi lists them. NVML (``nvidia-ml-py``) would give the same answers without a table to parse,
but it runs inside this process: a driver that hangs would hang the job, and no time limit can end
its calls. nvidia-smi is a process of its own, which can be given up after a time limit.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from video_pipeline.config import Config
from video_pipeline.config.vllm_version import installed_build
from video_pipeline.errors import EnvironmentFault, UserError
from video_pipeline.run.sharding import jobs_at_once

logger = logging.getLogger(__name__)

VISIBLE = "CUDA_VISIBLE_DEVICES"

_NAME = re.compile(r"\d+|(GPU|MIG)-\S+")

TIMEOUT_SECONDS = 60.0
"""If nvidia-smi takes longer, it hangs. Without persistence mode a GPU takes some seconds."""

_NO_GPU = {6, 9, 12}
"""Exit codes for no device, no driver and no library (``man nvidia-smi``)."""

_ANSWERED = {0, 14}
"""Exit codes with an answer; 14: the GPU works, though its infoROM is corrupt."""


@dataclass(frozen=True)
class Device:
    """A GPU that this process may use.

    Attributes:
        name: The name in ``CUDA_VISIBLE_DEVICES``; nvidia-smi's number if that is not set.
        uuid: The UUID, the same for all names of the GPU; ``name`` if nvidia-smi is missing.
        card: nvidia-smi's name of the product, such as ``NVIDIA H100 80GB HBM3``; None if it is not
            known, and for MIG slices and a GPU in MIG mode, of which CUDA takes the first slice.
    """

    name: str
    uuid: str
    card: str | None = None

    def __str__(self) -> str:
        return self.name if self.name == self.uuid else f"{self.name} ({self.uuid})"


def devices() -> list[Device]:
    """The GPUs that this process may use, each once; empty on a machine without one.

    Raises:
        UserError: ``CUDA_VISIBLE_DEVICES`` names a GPU that nvidia-smi does not list.
        EnvironmentFault: nvidia-smi hangs, or it reports a broken driver or GPU.
    """
    visible = os.environ.get(VISIBLE)
    # CUDA's rule: an entry that names no device hides all that follow.
    entries = map(str.strip, (visible or "").split(","))
    names = list(itertools.takewhile(_NAME.fullmatch, entries))
    if visible is not None and not names:
        return []
    rows = _query("gpu=index,uuid,name,mig.mode.current")  # MIG slices are not listed.
    listed = [Device(n, uuid, None if mig == "Enabled" else card) for n, uuid, card, mig in rows]
    if visible is None:
        return listed
    named = [_resolve(name, listed) if listed else Device(name, name) for name in names]
    return list({device.uuid: device for device in named}.values())


def _resolve(name: str, listed: list[Device]) -> Device:
    """The listed GPU that ``name`` means: CUDA takes its number, its UUID, and the start of the
    UUID, of which vLLM needs all. MIG slices are not listed and keep their names."""
    if name.startswith("MIG-"):
        return Device(name, name)
    matches = [gpu for gpu in listed if gpu.name == name or gpu.uuid.startswith(name)]
    if len(matches) != 1:
        raise UserError(
            f"{VISIBLE}={os.environ[VISIBLE]}: nvidia-smi lists no GPU {name}, but "
            + ", ".join(map(str, listed))
        )
    return replace(matches[0], name=name if name.isdigit() else matches[0].uuid)


def card_of(gpus: Iterable[Device]) -> str | None:
    """The name of the card, if all these GPUs are the same; otherwise None."""
    cards = {device.card for device in gpus}
    return cards.pop() if len(cards) == 1 else None


class MemoryUsage(NamedTuple):
    """Memory of a GPU, in MiB."""

    used: int
    free: int
    total: int


def memory_usage() -> dict[str, MemoryUsage]:
    """The memory of the GPUs by UUID, without those whose memory nvidia-smi does not know, and
    those in MIG mode, for which it adds up the slices."""
    rows = _query("gpu=uuid,memory.used,memory.free,memory.total,mig.mode.current")
    return {
        uuid: MemoryUsage(*map(int, sizes))
        for uuid, *sizes, mig in rows
        if mig != "Enabled" and all(size.isdigit() for size in sizes)
    }


def processes_on(gpu: str) -> list[str]:
    """The processes that compute on the GPU with this UUID, and their memory, in words."""
    rows = _query("compute-apps=gpu_uuid,pid,used_memory")
    return [f"process {pid} ({mib} MiB)" for uuid, pid, mib in rows if uuid == gpu]


def _query(query: str) -> list[list[str]]:
    """The rows of nvidia-smi's answer; none without a GPU or without nvidia-smi. Raises
    :class:`EnvironmentFault`."""
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError:
        return []
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # Nobody waits for it: a broken driver may hold it in the kernel.
        raise EnvironmentFault(
            f"`{' '.join(command)}` has given no answer for {TIMEOUT_SECONDS:g} s: the driver or a "
            "GPU hangs. Fix that, then run the same command again"
        ) from None
    if process.returncode in _NO_GPU:
        return []
    if process.returncode not in _ANSWERED:
        raise EnvironmentFault(
            f"`{' '.join(command)}` failed with exit code {process.returncode}: {output.strip()}. "
            "Fix the GPU or its driver, then run the same command again"
        )
    rows = ([cell.strip() for cell in line.split(",")] for line in output.splitlines())
    return [row for row in rows if len(row) == query.count(",") + 1]  # Warnings are no rows.


def gpus_needed(config: Config) -> int:
    """How many GPUs one inference job takes: none with the simulated engine, and none if vLLM is
    built for the CPU. vLLM looks up its build in the same way; it is not imported."""
    # On a cluster Snakemake's own environment may lack vLLM, so only a CPU build tells something.
    if config.run.engine == "simulated" or "cpu" in installed_build():
        return 0
    return config.vllm.gpus_per_job


def check_machine(config: Config, num_shards: int, limit: int | None) -> None:
    """Compare the jobs that Snakemake will start on this machine with the GPUs here. Without a
    limit, too few GPUs for all jobs are only a warning: the jobs wait for each other.

    Args:
        num_shards: How many inference jobs there are.
        limit: N of ``--resources gpu=N``; None if that was not given.

    Raises:
        UserError: There are too few GPUs for one job, or for as many jobs as ``limit`` lets start.
    """
    needed = gpus_needed(config)
    available = devices() if needed else []
    if not available:
        return
    check_count(available, needed)
    at_once = jobs_at_once(num_shards, limit, needed)
    if at_once * needed <= len(available):
        return
    names = ", ".join(device.name for device in available)
    if limit is not None:
        raise UserError(
            f"Snakemake was given gpu={limit}, for {at_once} jobs at a time with {needed} GPU(s) "
            f"each, but it may use only {len(available)} here: {names}. Lower --resources gpu, or "
            f"look at {VISIBLE}"
        )
    logger.warning(
        "%d inference jobs start at once, but with %d GPU(s) here (%s) some will wait for the "
        "others, and hold cores meanwhile; --resources gpu=%d starts only as many as can run",
        *(at_once, len(available), names, len(available)),
    )


def check_count(available: Sequence[Device], needed: int) -> None:
    """Raise :class:`UserError` if one job needs more GPUs than are available."""
    if len(available) < needed:
        raise UserError(
            f"one inference job needs {needed} GPUs, but this process may use only "
            f"{len(available)}: {', '.join(map(str, available))}"
        )
