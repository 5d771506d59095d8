"""The memory of an inference job, compared with what it asks the cluster for. Imported while
Snakemake parses the workflow: keep it light.
"""

from __future__ import annotations

from dataclasses import dataclass

from video_pipeline.config import Config
from video_pipeline.errors import UserError

FORK_SERVER_GB = 1.5
"""Of the process that decode processes are forked from, measured with a vocabulary of 151,643
tokens. It has loaded what they share: vLLM, the processor, the list of samples."""

DECODE_PROCESS_GB = 0.35
"""Of its own, of each decode process, measured with clips of 720p."""

ENGINE_GB = 3.0
"""Of the process that feeds the engine and one of its own: a rule of thumb, not measured on a GPU.
With a tiny model on the CPU it was 0.5 and 0.9."""


@dataclass(frozen=True)
class JobMemory:
    """Memory of one inference job, in GB.

    Attributes:
        workers: Decode processes.
        least: What it takes, with decode processes at their usual size and `/dev/shm` full.
        each: What one decode process may ask for, None without a limit.
        engine: The engine's part of ``least``.
        ready: The part of ``least`` that is in `/dev/shm`.
    """

    workers: int
    least: float
    each: float | None
    engine: float
    ready: float

    @classmethod
    def of(cls, config: Config, threads: int) -> JobMemory:
        """The memory of a job with so many cores."""
        workers = config.data.decode_processes(threads)
        per_gpu = ENGINE_GB + float(config.vllm.arguments.get("cpu_offload_gb") or 0)
        engine = per_gpu * config.vllm.gpus_per_job if config.run.engine == "vllm" else 0.0
        shared = FORK_SERVER_GB if config.run.engine == "vllm" else 0.0
        ready = config.data.max_ready_gb
        # one more than asked for: the spare process
        least = engine + shared + (workers + 1) * DECODE_PROCESS_GB + ready
        return cls(workers + 1, least, config.data.worker_memory_gb, engine, ready)

    @property
    def most(self) -> float | None:
        """What it takes when all decode processes have what they may ask for."""
        if self.each is None:
            return None
        return self.least + self.workers * max(0.0, self.each - DECODE_PROCESS_GB)

    def check(self, rule: str, mem_mb: int) -> str:
        """Compare with ``mem_mb`` of a rule; returns a warning, empty if it does in any case.

        Raises :class:`UserError` if it is less than the job takes.
        """
        has = mem_mb * 1.048576e-3  # SLURM's megabytes are 1024 x 1024 bytes
        if has < self.least:
            enough = self.least * 1.1 / 1.048576e-3
            raise UserError(
                f"{rule}: mem_mb={mem_mb} is {has:.0f} GB, but a job takes {self.least:.0f} GB: "
                f"{self.engine:.0f} for the engine, {self.ready:.0f} in /dev/shm "
                f"(data.max_ready_gb), the rest for {self.workers} decode processes. Raise "
                f"mem_mb of the profile to {enough:.0f}, or lower data.max_ready_gb"
            )
        if self.most is None or has >= self.most:
            return ""
        share = (has - self.least) / self.workers + DECODE_PROCESS_GB
        return (
            f"{rule}: mem_mb={mem_mb} is {has:.0f} GB, but {self.workers} decode processes may ask "
            f"for {self.each:g} GB each (data.worker_memory_gb), {self.most:.0f} GB with the rest. "
            "Where videos are so large that many need that at once, the job is killed; with "
            f"data.worker_memory_gb: {share:.1f} a video that needs more gets an error record"
        )
