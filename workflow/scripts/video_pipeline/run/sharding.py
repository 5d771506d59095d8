"""The sharding: the number of shards, decided once in Snakemake's main process.

Child processes of an executor do not see ``--resources gpu=N``, and neither do later calls such as
``snakemake -n`` or ``--report``. They read the file, and so build the same DAG.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from video_pipeline.common.files import write_text
from video_pipeline.common.versions import check_version
from video_pipeline.config import Config
from video_pipeline.errors import UserError

VERSION = 1
"""The version of the file."""


@dataclass(frozen=True)
class Sharding:
    """The number of chunks, and so of inference jobs, of an invocation. ``run_id`` names its
    journal if ``data.resume`` is false; otherwise it is empty."""

    num_shards: int
    run_id: str = ""
    version: int = VERSION

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_text(path, json.dumps(asdict(self)) + "\n")


def resolve_sharding(config: Config, path: Path, *, gpus: int | None, is_main: bool) -> Sharding:
    """The sharding of this invocation. ``path``: the file that an earlier process may have written;
    ``gpus``: ``--resources gpu=N``, None if it was not given.

    Raises :class:`UserError` if a job needs more GPUs than Snakemake was given.
    """
    written = read_sharding(path)
    if not is_main and written is not None:
        return written
    needed = config.vllm.gpus_per_job
    if gpus is not None and gpus < needed:
        raise UserError(
            f"one inference job needs {needed} GPUs (tensor x pipeline x data parallel), but "
            f"Snakemake was given gpu={gpus}: raise --resources gpu, or lower "
            "vllm.tensor_parallel_size"
        )
    if config.data.num_shards != "auto":
        num_shards = config.data.num_shards
    elif gpus is not None:
        num_shards = gpus // needed
    else:
        num_shards = written.num_shards if written is not None else 1
    return Sharding(num_shards, run_id="" if config.data.resume else uuid.uuid4().hex[:12])


def check_job_gpus(config: Config, overwritten: object) -> None:
    """Check the number of GPUs that ``--set-resources infer:gpu=N`` sets; None if it is not given.

    Raises :class:`UserError` unless a job needs this number: Snakemake lowers a larger one to its
    limit without a message, but the job still leases what its engine needs.
    """
    needed = config.vllm.gpus_per_job
    if overwritten is not None and str(overwritten) != str(needed):
        raise UserError(
            f"--set-resources infer:gpu={overwritten}: one inference job needs {needed} GPU(s) "
            "(tensor x pipeline x data parallel of the section vllm), which Snakemake is told "
            "already; leave it out, or change vllm.tensor_parallel_size"
        )


def jobs_at_once(num_shards: int, gpus: int | None, gpus_per_job: int) -> int:
    """How many inference jobs run at once; ``gpus``: ``--resources gpu=N``, None if not given."""
    return num_shards if gpus is None else min(num_shards, gpus // gpus_per_job)


def job_threads(cores: int | None, at_once: int, *, gpus_bind: bool) -> int:
    """An even share of ``--cores`` for each of the inference jobs that run at once.

    If GPUs limit the number of jobs (``--resources gpu=N`` on this machine), cores must not: with
    fewer cores than jobs a share is 0, and Snakemake still starts all of them.
    """
    if cores is None:
        return 1
    return max(0 if gpus_bind else 1, cores // at_once)


def read_sharding(path: Path) -> Sharding | None:
    """The sharding that an earlier invocation wrote, None if there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            check_version(path.absolute(), values.get("version"), VERSION)
        sharding = Sharding(**values)
        if type(sharding.num_shards) is not int or sharding.num_shards < 1:
            raise ValueError(f"num_shards: {sharding.num_shards!r}")
        return sharding
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"cannot read the plan {path.absolute()}: {error}; remove it and run again"
        ) from error
