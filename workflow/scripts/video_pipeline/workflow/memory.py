"""Compares the memory of an inference job with its request to the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from video_pipeline.config import Config
from video_pipeline.config.vision import decoder_of
from video_pipeline.errors import UserError

FORK_SERVER_GB = 1.3
"""The fork server, measured with a vocabulary of 151,643 tokens. It has loaded what decode
processes share: vLLM, the processor, the list of samples."""

DECODE_PROCESS_GB = 0.35
"""Private memory of each decode process, measured with clips of 720p."""

NVDEC_PROCESS_GB = 1.35
"""Memory of one that uses the GPU's decoder, and shares nothing with others, measured on an H100.
"""

ENGINE_GB = 3.0
"""The process that feeds the engine and the engine's own process: a rule of thumb, not measured on
a GPU. With a tiny model on the CPU they took 0.5 and 0.9."""

_GB_PER_MB = 1024 * 1024 / 1e9
"""SLURM's megabytes are 1024 x 1024 bytes."""


@dataclass(frozen=True)
class JobMemory:
    """Memory of one inference job, in GB."""

    decode_processes: int
    decode_limit: float | None  # What one decode process may request.
    engine: float  # The engine's processes.
    fork_server: float  # 0 if there is none.
    decoding: float  # The decode processes.
    ready: float  # Prepared samples in /dev/shm, if it is full.

    @classmethod
    def of(cls, config: Config, threads: int) -> JobMemory:
        """The memory of a job with ``threads`` cores."""
        uses_vllm = config.run.engine == "vllm"
        processes = config.data.decode_processes(threads)
        decoder = config.vision.decoder if uses_vllm else "cpu"
        on_gpu = sum(decoder_of(decoder, number) != "cpu" for number in range(processes))
        per_gpu = ENGINE_GB + config.vllm.number("cpu_offload_gb")
        return cls(
            decode_processes=processes,
            decode_limit=config.data.worker_memory_gb,
            engine=per_gpu * config.vllm.gpus_per_job if uses_vllm else 0.0,
            fork_server=FORK_SERVER_GB if uses_vllm else 0.0,
            decoding=(processes - on_gpu) * DECODE_PROCESS_GB + on_gpu * NVDEC_PROCESS_GB,
            ready=config.data.max_ready_gb,
        )

    @property
    def least(self) -> float:
        """The memory it needs with decode processes of the usual size."""
        return self.engine + self.fork_server + self.decoding + self.ready

    @property
    def most(self) -> float | None:
        """The memory it needs if all decode processes reach their limit."""
        if self.decode_limit is None:
            return None
        growth = self.decode_processes * self.decode_limit - self.decoding
        return self.least + max(0.0, growth)

    def check(self, rule: str, mem_mb: int) -> str:
        """Compare with ``mem_mb`` of a rule; returns a warning, empty if that is always enough.

        Raises :class:`UserError` if it is less than the job needs.
        """
        available = mem_mb * _GB_PER_MB
        if available < self.least:
            enough = self.least * 1.1 / _GB_PER_MB
            raise UserError(
                f"{rule}: mem_mb={mem_mb} is {available:.0f} GB, but a job needs {self.least:.0f} "
                f"GB: {self.engine:.0f} for the engine, {self.ready:.0f} in /dev/shm "
                f"(data.max_ready_gb), the rest for {self.decode_processes} decode processes. "
                f"Raise mem_mb of the profile to {enough:.0f}, or lower data.max_ready_gb"
            )
        if self.most is None or available >= self.most:
            return ""
        share = (available - self.least + self.decoding) / self.decode_processes
        return (
            f"{rule}: mem_mb={mem_mb} is {available:.0f} GB, but {self.decode_processes} decode "
            f"processes may request {self.decode_limit:g} GB each (data.worker_memory_gb), "
            f"{self.most:.0f} GB with the rest. If many large videos need that at once, the job is "
            f"killed; with data.worker_memory_gb: {share:.1f} such a video gets an error record"
        )
