"""One call of Snakemake on this workflow, as its rules and handlers see it."""

from __future__ import annotations

import atexit
import itertools
import os
import shlex
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from video_pipeline.common.files import write_text
from video_pipeline.common.locks import take_output
from video_pipeline.common.own_command import command_line
from video_pipeline.common.processes import (
    asked_to_end,
    stop_jobs_on_signals,
    tie_jobs_to_this_process,
)
from video_pipeline.config.configuration import load_config, read_file
from video_pipeline.config.short import as_typed
from video_pipeline.errors import UserError
from video_pipeline.gpu.devices import check_machine
from video_pipeline.run.invoked import Invoked
from video_pipeline.run.origin import (
    check_files,
    code_files,
    output_is_damaged,
    output_is_of_earlier_run,
    what_changed,
    what_stays,
)
from video_pipeline.run.previous import forget_previous, keep_previous, restore_previous
from video_pipeline.run.sharding import check_job_gpus, job_threads, jobs_at_once
from video_pipeline.run.stages import Stage, resolve_stages
from video_pipeline.workflow.cluster import check_arguments, check_jobs
from video_pipeline.workflow.failure_report import failure_report, last_errors
from video_pipeline.workflow.forecast import forecast
from video_pipeline.workflow.literal_paths import take_literally
from video_pipeline.workflow.pending import needs_no_gpu, num_pending
from video_pipeline.workflow.progress_lines import ProgressLines, num_to_retry, show_files
from video_pipeline.workflow.snakemake_internals import Snakemake, fails_as_workflow_error
from video_pipeline.workflow.terminal import shorten

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

_OTHERS = ("fetch", "partial")
"""The rules of each stage that take no settings of a profile from another stage."""

_PLAN = "plan"
"""The rule that all stages share."""


class Invocation:
    """The stages of this call of Snakemake (a stage without a name if the configuration has none),
    and the decisions for all of its jobs. In a module these are the stages of one import.

    ``workflow`` is the object of this name in a Snakefile, ``scripts`` the folder of
    ``workflow/scripts``.
    """

    @fails_as_workflow_error
    def __init__(self, workflow: Workflow, config: dict[str, Any], scripts: Path) -> None:
        tie_jobs_to_this_process()
        self.snakemake = Snakemake(workflow)
        self._scripts = scripts
        self._locks: list[TextIO] = []
        self._has_begun = False
        self._first = self  # Of several imports of the same run, the one whose handlers are called.
        self._progress: ProgressLines | None = None  # Set while this process may change the output.
        self._earlier_errors: list[str] = []  # Of jobs that this run may not reach.
        is_module = self.snakemake.is_module
        if not is_module:
            if terminal := self.snakemake.terminal:
                shorten(terminal, is_dry_run=lambda: self.snakemake.is_dry_run)
            for file in self.snakemake.config_files:
                read_file(file)  # Snakemake takes the last of two keys without a word.
            config = as_typed(config, self.snakemake.config_arguments)
        run, logs = load_config(config), Path("logs")
        if is_module:
            place = self.snakemake.take_prefix()
            run, logs = run.placed(place), Path(place(str(logs)))
        self.stages = resolve_stages(
            run,
            gpus=self.snakemake.gpu_limit,
            is_main=self.snakemake.is_main_process,
            logs=logs,
        )
        self._rules = self._name_rules()
        user_paths = (path for stage in self.stages for path in _user_paths(stage))
        take_literally([str(scripts), *user_paths])
        if self.snakemake.is_main_process and not self.snakemake.only_inspects:
            # In a module another rule may write the input.
            made = [Path(stage.config.data.input_jsonl) for stage in self.stages if is_module]
            check_files([stage.config for stage in self.stages], made)
            atexit.register(self._show_what_is_there)
        if is_module:
            self._join(self.snakemake.peers(self))

    def _name_rules(self) -> list[tuple[str, str]]:
        """The name of each rule in this workflow and in the importing workflow, without the rules
        that it leaves out. Settings of a profile for a step hold for the rules of all stages and
        imports."""
        names = {}
        for stage in self.stages:
            steps = ("infer", *stage.rule_outputs)
            for step in (*steps, *_OTHERS):
                if final := self.snakemake.final_name(stage.rule(step)):
                    names[stage.rule(step)] = final
            for step in steps:
                final = names.get(stage.rule(step), stage.rule(step))
                for general in (self.snakemake.final_name(step) or step, step):
                    self.snakemake.copy_settings(general, final)
            infer = names.get(stage.rule("infer"), "infer")
            check_job_gpus(stage.config, self.snakemake.set_resource(infer, "gpu"))
        if plan := self.snakemake.final_name(_PLAN):
            names[_PLAN] = plan
        return list(names.items())

    def _join(self, others: Sequence[Invocation]) -> None:
        """Add handlers for the start and the end of the importing workflow, once for all imports of
        the same run. ``others`` are the invocations of the same Snakemake.

        Raises :class:`UserError` if an invocation with another run has the same files.
        """
        configs = [stage.config for stage in self.stages]
        for other in others:
            if [stage.config for stage in other.stages] == configs:
                other._rules += self._rules
                self._first = other
                return
            for ours, theirs in itertools.product(self.stages, other.stages):
                if both := ours.config.published & theirs.config.published:
                    raise UserError(
                        f"two modules publish to the same place, {min(both)}: give one of them "
                        "another run.publish"
                    )
                if os.path.abspath(ours.layout.output) == os.path.abspath(theirs.layout.output):
                    raise UserError(
                        f"two modules write {ours.layout.output}: give one of them another "
                        "data.output_jsonl, or a prefix"
                    )
                if ours.layout.log("") == theirs.layout.log(""):
                    raise UserError(
                        f"{ours.layout.output} and {theirs.layout.output} of two modules would "
                        f"share the logs in {ours.layout.log('').parent}: give one of the outputs "
                        "another name, or its module a prefix"
                    )
        self.snakemake.add_handlers(
            onstart=self.begin, onsuccess=self.show_summary, onerror=self.explain_failure
        )

    # --- what rules ask for -----------------------------------------------------------------------

    def command(self, script: str) -> str:
        """The beginning of the command line of one of the workflow's scripts."""
        # A conda environment or a container brings its own interpreter.
        python = "python" if self.snakemake.deploys_software else sys.executable
        return shlex.join([python, str(self._scripts / script)])

    def work(self, stage: Stage, rank: int) -> str:
        """The work of the inference job of ``rank``, in words. Ask when it is about to start."""
        # In a dry run split may have to run first. The forecast at its end has the numbers.
        pending = None if self.snakemake.is_dry_run else num_pending(stage.layout, rank)
        if pending is None:
            return "infers what is pending"
        if not pending:
            return "writes what is done to its rank file"
        return f"infers {pending:,} sample{'s' * (pending != 1)}"

    @fails_as_workflow_error
    def samples(self, stage: Stage) -> list[str]:
        """The input of ``stage``, if it is a local file. For any other input, :func:`what_changed`
        tells whether it has changed.

        If the chunks or the output have another origin than the configuration, their jobs are
        forced to run: file times and Snakemake's own notes may not show it. Behind a checkpoint of
        an importing workflow, Snakemake asks for the input after the run has begun.
        """
        config, layout = stage.config, stage.layout
        if self.snakemake.is_main_process:
            if self.snakemake.calls_no_handlers:
                raise UserError(
                    "--no-hooks: leave it out. Before the first job a handler of video-pipeline "
                    "locks the output and writes the configuration that the jobs read"
                )
            if changed := what_changed(config, layout):
                reason = f"split again, changed: {', '.join(changed)}"
                self._force(stage, layout.manifest, reason)
                if stays := what_stays(config, layout):
                    _print(f"{layout.output}: {stays}")
            if output_is_damaged(layout):
                self._force(stage, layout.output, "not what was written there: written again")
            # This run keeps the output of the one before, too, once it has begun.
            is_restored = layout.previous.exists() and self._first._progress is None
            if is_of_earlier := is_restored or output_is_of_earlier_run(layout):
                self._force(stage, layout.output, "from an earlier run: written again")
            is_current = config.data.resume and not (changed or is_of_earlier)
            if layout.reopened.exists():
                reason = "failed samples were opened again: written anew"
                self._force(stage, layout.output, reason)
            elif is_current and (failed := num_to_retry(stage)):
                _print(
                    f"{layout.output}: {failed:,} of its samples failed earlier, and stay so until "
                    f"you open them again: {command_line('retry', layout.config, self._scripts)}"
                )
            if self.snakemake.is_dry_run:
                atexit.register(_print, f"{stage.title}{layout.output}: {forecast(config, layout)}")
            if self._first._has_begun and self._first._progress is None:
                self._first._start()
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
        its own, which must not try again within the job."""
        return 3 if self.snakemake.is_main_process else 0

    def infer_threads(self, stage: Stage) -> int:
        """The cores of an inference job: an even share. Ask when the executor is known."""
        gpus = self.snakemake.gpu_limit if self.snakemake.runs_jobs_here else None
        at_once = jobs_at_once(stage.sharding.num_shards, gpus, stage.config.vllm.gpus_per_job)
        return job_threads(self.snakemake.cores, at_once, gpus_bind=gpus is not None)

    def infer_gpus(self, stage: Stage, rank: int, attempt: int) -> int:
        """The GPUs of an inference job; 0 if it only writes its rank file. Ask again when it is
        about to start, because split has found the pending samples by then."""
        if attempt == 1 and needs_no_gpu(stage.layout, rank):
            return 0
        return stage.config.vllm.gpus_per_job

    # --- handlers ---------------------------------------------------------------------------------

    @fails_as_workflow_error
    def begin(self) -> None:
        """Before the first job: check the cluster, lock the outputs for this invocation, and write
        the decisions beside them."""
        if self._has_begun or not self.snakemake.is_main_process:
            return
        self._has_begun = True
        if self.snakemake.executor != "local":
            check_arguments(self.snakemake.config_arguments)
        if self.snakemake.executor == "slurm":
            planned, has_rules = self.snakemake.planned_jobs(), self.snakemake.chooses_partitions
            jobs = {name: planned[final] for name, final in self._rules if final in planned}
            for warning in check_jobs(jobs, self.stages, has_rules=has_rules):
                _print(f"warning: {warning}")
        to_run = self.snakemake.rules_to_run()
        rules = {name for name, final in self._rules if final in to_run}
        if _PLAN in rules:
            for stage in self.stages:
                write_text(stage.layout.plan_config, stage.config.to_yaml())
        # The other rules only look at the output, maybe while another invocation works on it.
        if rules - {_PLAN, *(stage.rule("partial") for stage in self.stages)}:
            self._start()

    def _start(self) -> None:
        """Lock the outputs, write the decisions beside them, and begin what goes on until the
        end."""
        pages = {stage.name: str(stage.layout.report) for stage in self.stages}
        invoked = Invoked.now(pages)
        for stage in self.stages:
            self._take(stage)
            invoked.write(stage.layout)
        self._earlier_errors = last_errors(self.stages)
        self.snakemake.do_not_restart(self._will_fail_again)
        stop_jobs_on_signals()
        self._progress = ProgressLines(self.stages, self._scripts)
        self._progress.begin()

    def _show_what_is_there(self) -> None:
        """At the end of a call with nothing to do: print the files' paths."""
        if self.snakemake.had_nothing_to_do:
            for stage in self.stages:
                show_files(stage)

    def show_summary(self) -> None:
        """After success: print the summaries of the outputs, as tables."""
        if self._progress is not None:
            self._progress.end()
            for stage in self.stages:
                forget_previous(stage.layout)
            self._progress.show_summary()

    def explain_failure(self) -> None:
        """After a failure: print, after Snakemake's messages, where to look and how to continue."""
        if self._progress is not None:
            self._progress.end()
            report = failure_report(
                self.stages,
                self._scripts,
                earlier=self._earlier_errors,
                is_stopped=asked_to_end.is_set(),
            )
            for stage in self.stages:
                if restore_previous(stage.layout):
                    _print(f"{stage.layout.output} is still that of the run before")
            atexit.register(_print, report)

    def _take(self, stage: Stage) -> None:
        """Lock the output of ``stage`` until this process ends, and write the decisions."""
        layout = stage.layout
        self._locks.append(take_output(layout.run_lock, layout.output))
        if self.snakemake.runs_jobs_here:
            check_machine(stage.config, stage.sharding.num_shards, self.snakemake.gpu_limit)
        keep_previous(layout)
        stage.sharding.write(layout.sharding)
        write_text(layout.config, stage.config.to_yaml())
        for rank in range(stage.sharding.num_shards):
            layout.failure(rank).unlink(missing_ok=True)

    def _will_fail_again(self, outputs: Collection[str]) -> bool:
        """Whether ``outputs`` are those of an inference job that another attempt would not help."""
        return any(
            stage.layout.failure(rank).exists()
            for stage in self.stages
            for rank in range(stage.sharding.num_shards)
            if str(stage.layout.rank_file(rank)) in outputs
        )


def _user_paths(stage: Stage) -> list[Path]:
    """The user's paths, or parts of them, that Snakemake sees."""
    files = [stage.layout.beside(""), *code_files(stage.config)]
    source = stage.config.data.source
    return [Path(source.place), *files] if source.is_local and source.is_file else files


def _print(text: str) -> None:
    print(text, file=sys.stderr)
