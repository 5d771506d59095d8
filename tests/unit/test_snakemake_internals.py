"""What the workflow uses of Snakemake beyond its public API: each with the installed Snakemake, and
with one that lacks it."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import PROJECT, SCRIPTS
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod, DeploymentSettings
from snakemake_executor_plugin_slurm import ExecutorSettings
from video_pipeline.errors import UserError
from video_pipeline.workflow import snakemake_internals
from video_pipeline.workflow.invocation import Invocation
from video_pipeline.workflow.snakemake_internals import TRIED, Snakemake

SNAKEFILE = """
import json
import sys
from pathlib import Path

sys.path.insert(0, {scripts!r})

from video_pipeline.workflow.snakemake_internals import Snakemake

internals = Snakemake(workflow)
parsed = {{
    "is_main_process": internals.is_main_process,
    "only_inspects": internals.only_inspects,
    "cores": internals.cores,
    "gpu_limit": internals.gpu_limit,
    "set_resource": [internals.set_resource("one", name) for name in ("mem_mb", "gpu")],
    "uses_conda": internals.uses_conda,
}}
Path(f"parsed.{{internals.is_main_process}}.json").write_text(json.dumps(parsed))
for other in ("two", "three"):
    internals.copy_settings("one", other)


def force_done(wildcards):
    internals.force(Path("done.txt"))
    return "input.txt"


rule all:
    input: "one.txt", "two.txt", "three.txt", "done.txt", "local.txt"

rule one:
    output: "one.txt"
    threads: 9
    shell: "echo {{threads}} {{resources.mem_mb}} {{resources.gpu}} > {{output}}"

use rule one as two with:
    output: "two.txt"

use rule one as three with:
    output: "three.txt"

rule done:
    input: force_done
    output: "done.txt"
    shell: "echo again > {{output}}"

rule local:
    output: "local.txt"
    localrule: True
    shell: "touch {{output}}"

onstart:
    jobs = internals.planned_jobs()
    started = {{
        "targets": sorted(internals.targets),
        "executor": internals.executor,
        "runs_jobs_here": internals.runs_jobs_here,
        "planned_jobs": {{
            name: [job.threads, job.resources["mem_mb"]]
            for name, job in jobs.items() if "mem_mb" in job.resources
        }},
        "planned_rules": sorted(jobs),
    }}
    Path(f"started.{{internals.executor}}.{{internals.is_main_process}}.json").write_text(json.dumps(started))
"""

ELSEWHERE = """
from snakemake.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False
)


class Executor(RemoteExecutor):
    def run_job(self, job):
        raise WorkflowError("this executor starts no jobs")

    async def check_active_jobs(self, active_jobs):
        for job in ():
            yield job

    def cancel_jobs(self, active_jobs):
        pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where Snakemake has run, and then once more as the child of an executor."""
    folder = tmp_path_factory.mktemp("snakemake")
    (folder / "Snakefile").write_text(SNAKEFILE.format(scripts=str(SCRIPTS)))
    for name in ("done.txt", "input.txt"):
        (folder / name).write_text("before")
    plugin = folder / "snakemake_executor_plugin_elsewhere"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(ELSEWHERE)
    settings = (
        *("--set-threads", "one=2", "three=3"),
        *("--set-resources", "one:mem_mb=7", "one:gpu=1", "three:mem_mb=8"),
    )
    elsewhere = ("--executor", "elsewhere", "--jobs", "1", "--seconds-between-status-checks", "1")
    said = call(folder, *elsewhere, *settings, succeeds=False)
    assert "this executor starts no jobs" in said, said
    call(folder, "all", "local.txt", "--cores", "4", "--resources", "gpu=5", *settings)
    child = ("--mode", "subprocess", "--target-jobs", "local:", "--allowed-rules", "local")
    call(folder, *child, "--cores", "1", "--force")
    return folder


def call(folder: Path, *arguments: str, succeeds: bool = True) -> str:
    """Run Snakemake; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments, "--nolock"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is succeeds, done.stderr
    return done.stderr


def parsed(folder: Path, *, main: bool) -> dict[str, Any]:
    """What was known when Snakemake parsed the workflow."""
    return json.loads((folder / f"parsed.{main}.json").read_text())


def started(folder: Path, executor: str) -> dict[str, Any]:
    """What was known when the first job was about to start."""
    return json.loads((folder / f"started.{executor}.True.json").read_text())


def test_what_is_known_while_the_workflow_is_parsed(folder):
    assert parsed(folder, main=True) == {
        "is_main_process": True,
        "only_inspects": False,
        "cores": 4,
        "gpu_limit": 5,
        "set_resource": [7, 1],
        "uses_conda": False,
    }
    assert parsed(folder, main=False) == {
        "is_main_process": False,
        "only_inspects": False,
        "cores": 1,
        "gpu_limit": None,
        "set_resource": [None, None],
        "uses_conda": False,
    }


def test_what_is_known_before_the_first_job(folder):
    assert started(folder, "local") == {
        "targets": ["all", "local.txt"],
        "executor": "local",
        "runs_jobs_here": True,
        "planned_jobs": {},
        "planned_rules": [],
    }
    assert started(folder, "elsewhere") == {
        "targets": [],
        "executor": "elsewhere",
        "runs_jobs_here": False,
        "planned_jobs": {"one": [2, 7], "two": [2, 7], "three": [3, 8]},
        "planned_rules": ["done", "one", "three", "two"],  # neither `all` nor `local`
    }


def test_settings_of_one_rule_hold_for_others_that_have_none(folder):
    asked = {name: (folder / f"{name}.txt").read_text().split() for name in ("two", "three")}
    assert asked == {"two": ["2", "7", "1"], "three": ["3", "8", "1"]}


def test_a_job_that_is_forced_runs_again(folder):
    assert (folder / "done.txt").read_text() == "again\n"


@pytest.mark.parametrize("option", ["--lint", "--list-rules", "--unlock"])
def test_a_call_that_only_inspects_is_known(monkeypatch, option):
    monkeypatch.setattr(sys, "argv", ["snakemake", option])
    assert Snakemake(SimpleNamespace()).only_inspects


def test_jobs_in_conda_environments_are_known():
    settings = DeploymentSettings(deployment_method={DeploymentMethod.CONDA})
    assert Snakemake(SimpleNamespace(deployment_settings=settings)).uses_conda


def test_the_plugin_of_slurm_may_choose_partitions(tmp_path):
    (tmp_path / "partitions.yaml").write_text("partitions: {}")
    for path in (None, tmp_path / "partitions.yaml"):
        workflow = SimpleNamespace(executor_settings=ExecutorSettings(partition_config=path))
        assert Snakemake(workflow).chooses_partitions is (path is not None)


def test_the_installed_versions_were_tried():
    for package, versions in TRIED.items():
        assert importlib.metadata.version(package) in versions


# --- a Snakemake that lacks something -------------------------------------------------------------

CALLS = {
    name: lambda snakemake, name=name: getattr(snakemake, name)
    for name, member in inspect.getmembers(Snakemake)
    if isinstance(member, property) and name != "only_inspects"
} | {
    "planned_jobs": lambda snakemake: snakemake.planned_jobs(),
    "force": lambda snakemake: snakemake.force(Path("out")),
    "set_resource": lambda snakemake: snakemake.set_resource("infer", "gpu"),
    "copy_settings": lambda snakemake: snakemake.copy_settings("infer", "infer_ask"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_missing_is_named_with_the_versions_that_have_it(name):
    parts = ("dag", "resource_settings", "dag_settings", "deployment_settings")
    workflow = SimpleNamespace(**{part: SimpleNamespace() for part in parts})
    with pytest.raises(
        UserError, match=r"^snakemake\S* [\d.]+ is not supported.*Tried: .*pip install snakemake"
    ):
        CALLS[name](Snakemake(workflow))


@pytest.mark.parametrize("name", ["replace_patterns", "is_literal"])
def test_patterns_that_are_missing_are_named(monkeypatch, name):
    monkeypatch.delattr("snakemake.io.WILDCARD_REGEX")
    monkeypatch.delattr("snakemake.pathvars.Pathvars")
    with pytest.raises(UserError, match="is not supported, because its io"):
        getattr(snakemake_internals, name)(str)


def test_the_workflow_stops_before_anything_else():
    with pytest.raises(WorkflowError, match=r"its workflow\.global_resources differs"):
        Invocation(SimpleNamespace(basedir=PROJECT), {})
