"""What nvidia-smi reports about the GPUs of this machine.

NVML (``nvidia-ml-py``) would give the same answers without a table to parse. But it runs inside the
calling process: a driver that hangs would hang the job, and no time limit can end such a call.
nvidia-smi is a process of its own, so it has one.
"""

from __future__ import annotations

import subprocess
from typing import NamedTuple

from video_pipeline.errors import EnvironmentFault

TIMEOUT_SECONDS = 60.0
"""After this nvidia-smi is stuck. Without persistence mode it takes some seconds for each GPU."""

_NO_GPU = {6, 9, 12}
"""Exit codes for no device, no driver and no library (``man nvidia-smi``)."""

_ANSWERED = {0, 14}
"""Exit codes with an answer; 14: the GPU works, though its infoROM is corrupt."""


class MemoryUsage(NamedTuple):
    """Memory of a GPU, in MiB."""

    used: int
    free: int
    total: int


def list_gpus() -> list[tuple[str, str, str]]:
    """Number, UUID and product name of each GPU. MIG slices are not listed."""
    return [(index, uuid, card) for index, uuid, card in _query("gpu=index,uuid,name")]


def memory_usage() -> dict[str, MemoryUsage]:
    """The memory of the GPUs by UUID, as far as nvidia-smi knows it."""
    rows = _query("gpu=uuid,memory.used,memory.free,memory.total")
    return {
        uuid: MemoryUsage(*map(int, sizes))
        for uuid, *sizes in rows
        if all(size.isdigit() for size in sizes)
    }


def processes_on(gpu: str) -> list[str]:
    """For people: the processes that compute on the GPU with this UUID, and their memory."""
    rows = _query("compute-apps=gpu_uuid,pid,used_memory")
    return [f"process {pid} ({mib} MiB)" for uuid, pid, mib in rows if uuid == gpu]


def _query(query: str) -> list[list[str]]:
    """The rows that nvidia-smi answers; none without a GPU or without nvidia-smi.

    Raises:
        EnvironmentFault: nvidia-smi hangs, or it reports a broken driver or GPU.
    """
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
