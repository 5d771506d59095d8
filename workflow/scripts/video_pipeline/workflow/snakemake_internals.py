"""All uses of Snakemake beyond its public API, behind named functions.

If a version of Snakemake lacks something, the run stops with an error that names it.
``tests/unit/test_snakemake_internals.py`` tests each function with the installed Snakemake.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, Protocol, TypeVar

from snakemake.exceptions import WorkflowError

from video_pipeline.errors import Failure, UserError

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

TRIED = {
    "snakemake": ("9.20.0", "9.27.0", "9.27.1"),
    "snakemake-executor-plugin-slurm": ("2.6.1", "2.8.0"),
}
"""The tried versions of each package whose internals are used here. To try another one:

    pip install --no-deps --target DIR snakemake==VERSION
    PYTHONPATH=DIR python -m pytest tests/unit/test_snakemake_internals.py
"""

_INSPECTIONS = {"--lint", "--list-rules", "--list", "-l", "--list-target-rules", "--lt", "--unlock"}

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Value = int | str | None
JobResources = Mapping[str, Value]


def fails_as_workflow_error(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: a :class:`Failure`, or an error of the file system such as that of a full disk,
    becomes the error that Snakemake prints without a traceback."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (Failure, OSError) as error:
            raise WorkflowError(str(error)) from error

    return call


@contextmanager
def _uses(internal: str, package: str = "snakemake") -> Iterator[None]:
    """Decorator of a function that uses ``internal``. If the installed ``package`` lacks it, the
    error names the versions that have it."""
    try:
        yield
    except (AttributeError, ImportError, TypeError) as error:
        tried = TRIED[package]
        raise UserError(
            f"{package} {importlib.metadata.version(package)} is not supported, because its "
            f"{internal} differs ({error}). Tried: {', '.join(tried)}. Install one of these: "
            f"pip install {package}=={tried[-1]}"
        ) from error


class PlannedJob(NamedTuple):
    """A job that will run, with its cores and its other resources."""

    threads: int
    resources: JobResources


class Snakemake:
    """The Snakemake that parses ``workflow``, the object of this name in Snakefiles."""

    def __init__(self, workflow: Workflow) -> None:
        self._workflow = workflow

    @property
    @_uses("workflow.is_main_process")
    def is_main_process(self) -> bool:
        """Whether a person called it, and not an executor for a job on a cluster."""
        return bool(self._workflow.is_main_process)

    @property
    def only_inspects(self) -> bool:
        """Whether it only shows the rules, or unlocks the folder: no job will run."""
        return not _INSPECTIONS.isdisjoint(sys.argv)

    @property
    @_uses("workflow.deployment_settings.deployment_method")
    def deploys_software(self) -> bool:
        """Whether jobs run in conda environments or containers (``--sdm``)."""
        return bool(self._workflow.deployment_settings.deployment_method)

    @property
    @_uses("workflow.dryrun")
    def is_dry_run(self) -> bool:
        """Whether it only shows what it would do (``-n``)."""
        return bool(self._workflow.dryrun)

    @property
    @_uses("workflow.execution_settings.no_hooks")
    def calls_no_handlers(self) -> bool:
        """Whether it calls no ``onstart``, ``onsuccess`` and ``onerror`` (``--no-hooks``)."""
        return bool(self._workflow.execution_settings.no_hooks)

    @property
    @_uses("workflow.config_settings.config_args")
    def config_arguments(self) -> list[str]:
        """The arguments of ``--config``, such as ``model=MODEL``, as they were typed."""
        return list(self._workflow.config_settings.config_args or ())

    @property
    @_uses("workflow.configfiles")
    def config_files(self) -> list[Path]:
        """The YAML files of ``--configfile`` and ``configfile:``; a pipe is read by now."""
        paths = map(Path, self._workflow.configfiles)
        return [path for path in paths if path.is_file() and path.suffix != ".json"]

    @property
    @_uses("logging.logger and workflow.output_settings")
    def terminal(self) -> logging.Handler | None:
        """What writes to the terminal; None with another logger, and if the caller wants to see all
        (``--verbose``, ``--printshellcmds``)."""
        from snakemake.logging import logger

        shows = self._workflow.output_settings
        if shows.verbose or shows.printshellcmds:
            return None
        named = (each for each in logger.handlers if each.name == "DefaultStreamHandler")
        return next(named, None)

    @property
    @_uses("workflow.scheduler and workflow.dag")
    def had_nothing_to_do(self) -> bool:
        """Whether it has found that all files are there. Ask when it ends."""
        return self._workflow.scheduler is not None and not len(self._workflow.dag)

    # --- modules: ask while the workflow is parsed ----------------------------------------------

    @property
    @_uses("workflow.modifier.is_main_snakefile")
    def is_module(self) -> bool:
        """Whether another workflow imports this workflow, which is being parsed."""
        return not self._workflow.modifier.is_main_snakefile()

    @_uses("workflow.modifier.avail_rulename and modify_rulename")
    def final_name(self, rule: str) -> str | None:
        """The name of ``rule`` in the importing workflow; None if that leaves the rule out."""
        modifier = self._workflow.modifier
        if modifier.avail_rulename(rule) is None:
            return None
        name: str = modifier.modify_rulename(rule)
        return name

    @_uses("workflow.modifier.path_modifier")
    def take_prefix(self) -> Callable[[str], str]:
        """The function that applies ``prefix`` or ``replace_prefix`` of the importing workflow to a
        path. From then on Snakemake does not change the paths in this module's rules: scripts must
        find the same files, and Snakemake does not tell them the prefix."""
        from snakemake.path_modifier import PathModifier

        modifier = self._workflow.modifier
        importers = modifier.path_modifier
        modifier.path_modifier = PathModifier(None, None, self._workflow)
        return lambda path: str(importers.replace_prefix(path))

    @_uses("workflow._onstart, _onsuccess and _onerror")
    def add_handlers(self, **handlers: Callable[[], None]) -> None:
        """Let Snakemake call ``handlers``, by their event (``onstart``, ``onsuccess``,
        ``onerror``), after those of the importing workflow, which may define its own later. By
        itself Snakemake calls no handlers of a module."""
        for event, handler in handlers.items():
            self._add_handler(event, handler)

    def _add_handler(self, event: str, handler: Callable[[], None]) -> None:
        workflow, register = self._workflow, getattr(self._workflow, event)

        def both(theirs: Callable[[object], None]) -> Callable[[object], None]:
            def call(log: object) -> None:
                theirs(log)
                handler()

            return call

        setattr(workflow, f"_{event}", both(getattr(workflow, f"_{event}")))
        setattr(workflow, event, lambda theirs: register(both(theirs)))

    def peers(self, newcomer: T) -> list[T]:
        """The earlier callers of this method for the same Snakemake, one for each import of a
        module. From then on ``newcomer`` is one of them."""
        peers: list[T] = vars(self._workflow).setdefault("_video_pipeline", [])
        peers.append(newcomer)
        return peers[:-1]

    # --- cores, GPUs and other resources --------------------------------------------------------

    @property
    @_uses("workflow.resource_settings.cores")
    def cores(self) -> int | None:
        """``--cores``; None if it is not given, as on a cluster."""
        cores: int | None = self._workflow.resource_settings.cores
        return cores

    @property
    @_uses("workflow.global_resources")
    def gpu_limit(self) -> int | None:
        """``--resources gpu=N``; None if it is not given, as in an executor's child process."""
        limit = self._workflow.global_resources.get("gpu")
        gpus: int | None = None if limit is None else limit.value
        return gpus

    @_uses("workflow.resource_settings._parsed_overwrite_resources")
    def set_resource(self, rule: str, resource: str) -> Value:
        """``--set-resources RULE:RESOURCE=VALUE``; None if it is not given."""
        overwritten = self._workflow.resource_settings._parsed_overwrite_resources
        value = overwritten.get(rule, {}).get(resource)
        raw: Value = None if value is None else value.raw
        return raw

    @_uses("workflow.resource_settings._parsed_overwrite_threads and _parsed_overwrite_resources")
    def copy_settings(self, rule: str, other: str) -> None:
        """Let ``--set-threads`` and ``--set-resources`` of ``rule`` hold for ``other`` too, unless
        they name ``other``. Call this before the rules are made: Snakemake looks the settings up
        then, only by the name of the rule."""
        from snakemake.resources import Resources

        settings = self._workflow.resource_settings
        threads = settings._parsed_overwrite_threads
        resources = settings._parsed_overwrite_resources
        if rule in threads:
            threads.setdefault(other, threads[rule])
        if rule in resources:
            resources[other] = Resources({**resources[rule], **resources.get(other, {})})

    # --- the executor and the jobs: known when Snakemake has read all rules -----------------------

    @property
    @_uses("workflow.local_exec")
    def runs_jobs_here(self) -> bool:
        """Whether jobs run on this machine."""
        return bool(self._workflow.local_exec)

    @property
    @_uses("workflow.executor_plugin")
    def executor(self) -> str:
        """The name of the executor, such as ``local`` or ``slurm``."""
        return str(self._workflow.executor_plugin.name)

    @property
    @_uses("executor_settings.partition_config", package="snakemake-executor-plugin-slurm")
    def chooses_partitions(self) -> bool:
        """Whether SLURM's plugin chooses partitions by rules (``--slurm-partition-config``)."""
        return bool(self._workflow.executor_settings.partition_config)

    @_uses("workflow.dag.needrun_jobs")
    def planned_jobs(self) -> dict[str, PlannedJob]:
        """A job of each rule that will run, by the rule's name, without the jobs that run in
        Snakemake's place."""
        return {
            job.rule.name: PlannedJob(job.threads, dict(job.resources.items()))
            for job in self._workflow.dag.needrun_jobs()
            if not job.is_local
        }

    @_uses("workflow.dag.needrun_jobs")
    def rules_to_run(self) -> set[str]:
        """The names of the rules that have a job to run."""
        return {job.rule.name for job in self._workflow.dag.needrun_jobs()}

    @_uses("workflow.dag.forcefiles")
    def force(self, output: Path) -> None:
        """Let the job of ``output`` run, even if file times and Snakemake's notes show no change.
        Call this from an input function, while Snakemake makes the jobs."""
        self._workflow.dag.forcefiles.add(str(output))

    @_uses("jobs.Job.restart_times")
    def do_not_restart(self, will_fail_again: Callable[[Collection[str]], bool]) -> None:
        """Do not start a failed job again, whatever ``retries`` says, if ``will_fail_again`` says
        so of its output files."""
        from snakemake.jobs import Job

        restart_times: Callable[[Job], int] = Job.restart_times.fget

        def times(job: Job) -> int:
            return 0 if will_fail_again(job.output) else restart_times(job)

        Job.restart_times = property(times)


# --- wildcards and path variables -----------------------------------------------------------------


class Pattern(Protocol):
    """The part of a compiled pattern that Snakemake uses."""

    def finditer(self, text: str, /) -> Iterator[re.Match[str]]: ...

    def search(self, text: str, /) -> re.Match[str] | None: ...

    def sub(self, replace: Callable[[re.Match[str]], str], text: str, /) -> str: ...


@_uses("io.WILDCARD_REGEX and pathvars.PATHVAR_REGEX")
def replace_patterns(replace: Callable[[Pattern], Pattern]) -> None:
    """Replace the patterns with which Snakemake finds wildcards and path variables in a path."""
    from snakemake import io, pathvars

    io.WILDCARD_REGEX = replace(io.WILDCARD_REGEX)
    pathvars.PATHVAR_REGEX = replace(pathvars.PATHVAR_REGEX)


@_uses("io.contains_wildcard and pathvars.Pathvars")
def is_literal(path: str) -> bool:
    """Whether ``path`` has neither a wildcard nor a path variable."""
    from snakemake import io, pathvars

    applied = pathvars.Pathvars.with_defaults().apply(path)
    return bool(applied == path and not io.contains_wildcard(path))
