"""What jobs ask SLURM for, checked before the first is submitted. Imported while Snakemake parses
the workflow: keep it light.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

from video_pipeline.errors import UserError
from video_pipeline.suggest import did_you_mean

SINFO_SECONDS = 20.0
"""A controller that answers does so in a fraction of a second."""

_WHERE = "slurm_partition, in default-resources or set-resources of the profile"


_CLUSTERS = ("slurm_cluster", "cluster", "clusters")


def memory_of(resources: Mapping[str, Any], threads: int) -> int | None:
    """The megabytes that a job asks for; None if it leaves them to the cluster."""
    per_cpu = resources.get("mem_mb_per_cpu")
    return per_cpu * threads if per_cpu else resources.get("mem_mb")


def check_partitions(jobs: Mapping[str, Mapping[str, Any]], *, has_rules: bool) -> None:
    """Compare the partitions that jobs ask for with those of this cluster.

    Without a partition the plugin asks `sinfo` for the default one, and waits without a word and
    without end if that fails.

    Args:
        jobs: the resources of a job of each rule.
        has_rules: whether the plugin chooses by rules of its own (`slurm-partition-config`).

    Raises:
        UserError: if a partition is not there, or none is named and there is no default.
    """
    has_rules = has_rules or "SNAKEMAKE_SLURM_PARTITIONS" in os.environ
    # Another cluster has partitions of its own.
    here = {rule: of for rule, of in jobs.items() if not any(map(of.get, _CLUSTERS))}
    named = {rule: of.get("slurm_partition") for rule, of in here.items()}
    without = [] if has_rules else sorted(rule for rule, name in named.items() if not name)
    try:
        answer = _sinfo()
    except UserError as error:
        if without:
            raise UserError(
                f"no partition is set for {', '.join(without)}, and the default one is not known: "
                f"{error}. Set {_WHERE}"
            ) from None
        return
    names = [name.removesuffix("*") for name in answer]
    listed = f"; this cluster has {', '.join(names)}"
    if without and not any(name.endswith("*") for name in answer):
        raise UserError(
            f"no partition is set for {', '.join(without)}, and none is the default{listed}. "
            f"Set {_WHERE}"
        )
    for rule, partitions in named.items():
        for name in str(partitions).split(",") if partitions else []:
            if name not in names:
                hint = did_you_mean(name, names, show=str)
                raise UserError(f"{rule}: there is no partition {name}{listed}{hint}")


def _sinfo() -> list[str]:
    """The partitions, the default one with a star, as `sinfo` names them."""
    try:
        done = subprocess.run(
            ["sinfo", "--all", "--noheader", "--format=%P"],
            # such as SINFO_PARTITION, which shows that one alone
            env={name: value for name, value in os.environ.items() if name[:6] != "SINFO_"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SINFO_SECONDS,
        )
    except OSError as error:
        raise UserError(f"sinfo: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"sinfo has not answered for {SINFO_SECONDS:.0f} s") from None
    if done.returncode:
        raise UserError(f"sinfo failed: {done.stderr.strip()}")
    return done.stdout.split()
