"""The plan: what is decided once in Snakemake's main process and read by all others.

Child processes of an executor do not see ``--resources gpu=N``, and neither do later calls such as
``snakemake -n`` or ``--report``; they read the plan, and so build the same DAG. Imported while
Snakemake parses the workflow: keep it light.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.files import write_text


@dataclass(frozen=True)
class Plan:
    """What all processes of an invocation agree on.

    Attributes:
        num_shards: How many chunks, and so inference jobs.
        run_id: Names the journal of this invocation where ``data.resume`` is false, else empty.
    """

    num_shards: int
    run_id: str = ""

    def write(self, path: Path) -> None:
        """Write the plan, at once."""
        write_text(path, json.dumps(asdict(self)) + "\n")


def resolve_plan(config: Config, path: Path, *, gpus: int | None, is_main: bool) -> Plan:
    """The plan of this invocation.

    ``gpus`` is ``--resources gpu=N`` (None where it was not given), ``path`` the plan that an
    earlier process wrote, ``is_main`` whether this is Snakemake's main process.

    Raises :class:`UserError` if a job needs more GPUs than Snakemake was given.
    """
    written = read_plan(path)
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
    return Plan(num_shards, run_id="" if config.data.resume else uuid.uuid4().hex[:12])


def revive_chunks(manifest: Path) -> None:
    """Change the manifest of a number of shards that was used before and comes back.

    Rank files have the same names whatever the number of shards: those that another number has
    left must count as older than their chunks, also where Snakemake looks at file times alone. A
    new time is not enough, it compares the content of small files too.
    """
    if manifest.exists():
        content = json.loads(manifest.read_text(encoding="utf-8"))
        content["revived"] += 1
        write_text(manifest, json.dumps(content, indent=2) + "\n")


def read_plan(path: Path) -> Plan | None:
    """The plan that an earlier invocation wrote, None if there is none."""
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the plan {path}: {error}; remove it and run again") from error
