"""One call of Snakemake on this workflow, as its rules and handlers see it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from video_pipeline.common.files import write_text
from video_pipeline.common.locks import take_output
from video_pipeline.common.processes import stop_jobs_on_signals, tie_jobs_to_this_process
from video_pipeline.config import load_config
from video_pipeline.gpu.devices import check_machine
from video_pipeline.run.origin import (
    check_files,
    code_files,
    output_is_damaged,
    what_changed,
    what_stays,
)
from video_pipeline.run.sharding import check_job_gpus, job_threads, jobs_at_once
from video_pipeline.run.stages import Stage, resolve_stages
from video_pipeline.workflow.cluster import check_jobs
from video_pipeline.workflow.failure_report import failure_report
from video_pipeline.workflow.literal_paths import take_literally
from video_pipeline.workflow.pending import only_publishes
from video_pipeline.workflow.snakemake_internals import Snakemake, fails_as_workflow_error

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

_STEPS = ("split", "infer", "consolidate", "report", "export")
"""The rules whose settings in a profile hold for the rules of all stages."""


class Invocation:
    """The stages of this call of Snakemake (one without a name if the configuration has none), and
    what is decided once for all of its jobs. ``workflow`` is the object of this name in a
    Snakefile."""

    @fails_as_workflow_error
    def __init__(self, workflow: Workflow, config: dict[str, Any]) -> None:
        tie_jobs_to_this_process()
        self.snakemake = Snakemake(workflow)
        self._scripts = Path(workflow.basedir, "workflow", "scripts")
        self._locks: list[TextIO] = []
        self.stages = resolve_stages(
            load_config(config),
            gpus=self.snakemake.gpu_limit,
            is_main=self.snakemake.is_main_process,
        )
        for stage in self.stages:
            for step in _STEPS:
                self.snakemake.copy_settings(step, stage.rule(step))
            check_job_gpus(stage.config, self.snakemake.set_resource(stage.rule("infer"), "gpu"))
        user_paths = (path for stage in self.stages for path in _user_paths(stage))
        take_literally([workflow.basedir, *user_paths])
        if self.snakemake.is_main_process and not self.snakemake.only_inspects:
            check_files([stage.config for stage in self.stages])

    # --- what rules ask for -----------------------------------------------------------------------

    def command(self, script: str) -> str:
        """The beginning of the command line of one of the workflow's scripts."""
        # A conda environment brings its own interpreter.
        python = "python" if self.snakemake.uses_conda else sys.executable
        return shlex.join([python, str(self._scripts / script)])

    @fails_as_workflow_error
    def samples(self, stage: Stage) -> list[str]:
        """The input of ``stage``, if it is a local file. Of any other :func:`what_changed` tells
        whether it has changed.

        If chunks or output do not come from what the configuration says, their jobs are forced to
        run: file times and Snakemake's own memory need not show it.
        """
        config, layout = stage.config, stage.layout
        if self.snakemake.is_main_process:
            if changed := what_changed(config, layout):
                reason = f"split again, changed: {', '.join(changed)}"
                self._force(stage, layout.manifest, reason)
                if stays := what_stays(config, layout, changed):
                    _print(f"{layout.output}: {stays}")
            if output_is_damaged(layout):
                self._force(stage, layout.output, "not what was written there: written again")
            if layout.reopened.exists():
                reason = "failed samples were opened again: written anew"
                self._force(stage, layout.output, reason)
        source = config.data.source
        return [source.place] if source.is_local and source.is_file else []

    def _force(self, stage: Stage, output: Path, reason: str) -> None:
        self.snakemake.force(output)
        _print(f"{stage.layout.output}: {reason}")

    @property
    def cores(self) -> int:
        """The cores of this machine that jobs may use."""
        return self.snakemake.cores or os.cpu_count() or 1

    @property
    def infer_retries(self) -> int:
        """How often a failed inference job is tried again. A job on a cluster runs a Snakemake of
        its own, which must not try again inside of the job."""
        return 3 if self.snakemake.is_main_process else 0

    def infer_threads(self, stage: Stage) -> int:
        """The cores of an inference job: an even share. Ask when the executor is known."""
        gpus = self.snakemake.gpu_limit if self.snakemake.runs_jobs_here else None
        at_once = jobs_at_once(stage.sharding.num_shards, gpus, stage.config.vllm.gpus_per_job)
        return job_threads(self.snakemake.cores, at_once, gpus_bind=gpus is not None)

    def infer_gpus(self, stage: Stage, rank: int, attempt: int) -> int:
        """The GPUs of an inference job; none if it only publishes. Ask again when the job is about
        to start, because split has found out by then what is pending."""
        publishes = attempt == 1 and only_publishes(stage.layout, rank)
        return 0 if publishes else stage.config.vllm.gpus_per_job

    # --- handlers ---------------------------------------------------------------------------------

    @fails_as_workflow_error
    def begin(self) -> None:
        """Before the first job: check the cluster, take the outputs for this invocation, and write
        beside them what was decided."""
        if not self.snakemake.is_main_process:
            return
        if self.snakemake.executor == "slurm":
            jobs, has_rules = self.snakemake.planned_jobs(), self.snakemake.chooses_partitions
            for warning in check_jobs(jobs, self.stages, has_rules=has_rules):
                _print(f"warning: {warning}")
        if "plan" in self.snakemake.targets:
            for stage in self.stages:
                write_text(stage.layout.plan_config, stage.config.to_yaml())
        if self._changes_output:
            for stage in self.stages:
                self._take(stage)
            stop_jobs_on_signals()

    def show_summary(self) -> None:
        """After success: the summaries of the outputs, as tables."""
        if self._changes_output:
            from rich.console import Console

            from video_pipeline.report.summary import summary_table

            for stage in self.stages:
                if stage.layout.summary.exists():
                    Console(stderr=True).print(summary_table(stage.layout.summary))

    def explain_failure(self) -> None:
        """After a failure: where to look, and the command that continues."""
        if self._changes_output:
            _print(failure_report(self.stages, self._scripts))

    @property
    def _changes_output(self) -> bool:
        """Whether this process may change the output: neither a job's, nor one that only looks at
        the output, maybe beside an invocation that works on it."""
        targets = self.snakemake.targets
        readers = {"plan", *(stage.rule("partial") for stage in self.stages)}
        only_looks = bool(targets) and targets <= readers
        return self.snakemake.is_main_process and not only_looks

    def _take(self, stage: Stage) -> None:
        """Lock the output of ``stage`` until this process ends, and write down the decisions."""
        layout = stage.layout
        self._locks.append(take_output(layout.run_lock, layout.output))
        if self.snakemake.runs_jobs_here:
            check_machine(stage.config, stage.sharding.num_shards, self.snakemake.gpu_limit)
        stage.sharding.write(layout.sharding)
        layout.config.write_text(stage.config.to_yaml(), encoding="utf-8")


def _user_paths(stage: Stage) -> list[Path]:
    """The user's paths that Snakemake sees, or parts of them."""
    files = [stage.layout.beside(""), *code_files(stage.config)]
    source = stage.config.data.source
    return [Path(source.place), *files] if source.is_local and source.is_file else files


def _print(text: str) -> None:
    print(text, file=sys.stderr)
