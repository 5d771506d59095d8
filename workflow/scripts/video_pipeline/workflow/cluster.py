"""Checks what jobs of a cluster get and request, before the first one is submitted."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping

from video_pipeline.common.suggest import did_you_mean
from video_pipeline.errors import UserError
from video_pipeline.run.stages import Stage
from video_pipeline.workflow.memory import JobMemory
from video_pipeline.workflow.snakemake_internals import JobResources, PlannedJob

SINFO_SECONDS = 20.0
"""A controller that answers does so in a fraction of a second."""

_WHERE = "slurm_partition, in default-resources or set-resources of the profile"

_CLUSTERS = ("slurm_cluster", "cluster", "clusters")


def check_jobs(
    jobs: Mapping[str, PlannedJob], stages: Iterable[Stage], *, has_rules: bool
) -> list[str]:
    """Compare the requests of jobs (one of each rule, by its name) with this cluster and with their
    needs; returns warnings. ``has_rules``: the plugin chooses partitions by rules of its own
    (`slurm-partition-config`).

    Raises :class:`UserError` if a job cannot run with its request.
    """
    check_partitions({rule: job.resources for rule, job in jobs.items()}, has_rules=has_rules)
    warnings = []
    for stage in stages:
        rule = stage.rule("infer")
        if (job := jobs.get(rule)) and (mem_mb := requested_mb(job.resources, job.threads)):
            warnings.append(JobMemory.of(stage.config, job.threads).check(rule, mem_mb))
    return list(filter(None, warnings))


def check_arguments(arguments: Iterable[str]) -> None:
    """Raise :class:`UserError` if a shell runs a part of an argument of `--config`, or cannot read
    it: Snakemake gives it to each job in the quotes of Python's `repr`."""
    for argument in arguments:
        if re.search(r"`|\$[({]", argument) or {"'", '"'} <= set(argument):
            raise UserError(
                f"--config {argument.partition('=')[0]}: jobs of a cluster get it through a shell, "
                "which runs what is between backticks, and fails at both kinds of quotes in one "
                "text; write it into the file of --configfile"
            )


def requested_mb(resources: JobResources, threads: int) -> int | None:
    """The megabytes that a job requests; None if it leaves them to the cluster."""
    per_cpu, mem_mb = resources.get("mem_mb_per_cpu"), resources.get("mem_mb")
    if isinstance(per_cpu, int) and per_cpu:
        return per_cpu * threads
    return mem_mb if isinstance(mem_mb, int) else None


def check_partitions(jobs: Mapping[str, JobResources], *, has_rules: bool) -> None:
    """Compare the partitions that jobs request with those of this cluster; see :func:`check_jobs`.

    Without a partition the plugin asks `sinfo` for the default one, and waits without a message and
    without end if that fails.
    """
    has_rules = has_rules or "SNAKEMAKE_SLURM_PARTITIONS" in os.environ
    requested = {
        rule: resources.get("slurm_partition")
        for rule, resources in jobs.items()
        if not any(map(resources.get, _CLUSTERS))  # Another cluster has partitions of its own.
    }
    without = [] if has_rules else sorted(rule for rule, name in requested.items() if not name)
    try:
        partitions = _partitions()
    except UserError as error:
        if without:
            raise UserError(
                f"no partition is set for {', '.join(without)}, and the default one is not known: "
                f"{error}. Set {_WHERE}"
            ) from None
        return
    names = [name.removesuffix("*") for name in partitions]
    listed = f"; this cluster has {', '.join(names)}"
    if without and names == partitions:
        raise UserError(
            f"no partition is set for {', '.join(without)}, and none is the default{listed}. "
            f"Set {_WHERE}"
        )
    for rule, joined in requested.items():
        for name in str(joined).split(",") if joined else []:
            if name not in names:
                hint = did_you_mean(name, names, show=str)
                raise UserError(f"{rule}: there is no partition {name}{listed}{hint}")


def _partitions() -> list[str]:
    """The partitions of this cluster, as `sinfo` names them: the default one has a star."""
    try:
        result = subprocess.run(
            ["sinfo", "--all", "--noheader", "--format=%P"],
            # Without variables such as SINFO_PARTITION, with which it shows only one partition.
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
    if result.returncode:
        raise UserError(f"sinfo failed: {result.stderr.strip()}")
    return result.stdout.split()
