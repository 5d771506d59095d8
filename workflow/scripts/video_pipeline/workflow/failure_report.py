"""Writes the last lines after a failure: where to look, and the command that continues."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from video_pipeline.common.logs import ERROR, last_error
from video_pipeline.run.stages import Stage
from video_pipeline.workflow.weights import is_fetched

MAX_ERRORS = 3
"""The most errors that are shown."""


def failure_report(
    stages: Sequence[Stage],
    scripts: Path,
    *,
    earlier: Collection[str] = (),
    is_stopped: bool = False,
) -> str:
    """The lines about the failed jobs of ``stages``; ``scripts`` is the folder of the workflow's
    scripts. Errors of ``earlier`` runs (:func:`last_errors`) are not shown. If a signal has ended
    the run (``is_stopped``), the lines are only about the errors of jobs that had failed before."""
    errors = [error for error in last_errors(stages) if error not in earlier]
    goes_on = (
        "The journal has all answers so far: the same command infers only what is missing."
        if stages[0].config.data.resume
        else "data.resume is false, so the same command begins anew."
    )
    if is_stopped:
        lines = [f"\nStopped by a signal, such as that of Ctrl-C. {goes_on}"]
        return "\n".join([*lines, *_shown(errors)])
    folders = sorted({str(stage.layout.log("split").parent) for stage in stages})
    lines = [
        f"\nThe logs under {', '.join(folders)}/ say what failed. Fix the cause and run again.\n"
        f"{goes_on}"
    ]
    lines.extend(
        f"Not finished: {', '.join(f'rank {rank}' for rank in unfinished)} "
        f"(of {stage.sharding.num_shards}). To run one of them by hand, from {Path.cwd()}:\n"
        f"  {shlex.join(_infer_command(stage, unfinished[0], scripts))}"
        for stage in stages
        if (unfinished := stage.layout.unfinished())
    )
    return "\n".join([*lines, *_shown(errors)])


def last_errors(stages: Sequence[Stage]) -> list[str]:
    """The last words of the jobs whose output is missing. Each names the log of its attempt."""
    errors: list[str] = []
    for stage in stages:
        layout = stage.layout
        outputs = dict(stage.rule_outputs)
        if is_fetched(stage.config):
            outputs["fetch"] = layout.weights
        failed = [rule for rule, path in outputs.items() if not path.exists()]
        failed += [f"infer.rank{rank}" for rank in layout.unfinished()]
        errors += filter(None, (last_error(layout.log(name)) for name in failed))
    return errors


def _shown(errors: Sequence[str]) -> list[str]:
    """The lines about the errors of jobs."""
    has_more = len(errors) > MAX_ERRORS
    title = [f"The first {MAX_ERRORS} of {len(errors)} errors:"] if has_more else []
    return [*title, *(f"{ERROR}{error}" for error in errors[:MAX_ERRORS])]


def _infer_command(stage: Stage, rank: int, scripts: Path) -> list[str]:
    """The command line that infers one shard without Snakemake, with all cores of this machine."""
    options: dict[str, object] = {
        "config": stage.layout.config,
        "num-shards": stage.sharding.num_shards,
        "rank": rank,
        "threads": os.cpu_count(),
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [sys.executable, str(scripts / "infer.py"), *arguments]
