"""What the workflow uses of Snakemake beyond its public API: each with the installed Snakemake, and
with one that lacks it."""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
import runpy
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import SCRIPTS
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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
    "deploys_software": internals.deploys_software,
    "is_module": internals.is_module,
    "final_name": internals.final_name("one"),
    "config_arguments": internals.config_arguments,
    "has_terminal": internals.terminal is not None,
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
        "rules_to_run": sorted(internals.rules_to_run()),
        "is_dry_run": internals.is_dry_run,
        "calls_no_handlers": internals.calls_no_handlers,
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

MODULE = """
import json
import sys

sys.path.insert(0, {scripts!r})

from video_pipeline.workflow.snakemake_internals import Snakemake


def hear(what):
    with open("heard.jsonl", "a") as stream:
        stream.write(json.dumps(what) + "\\n")


internals = Snakemake(workflow)
name = internals.final_name("made")
place = internals.take_prefix()
peers = internals.peers(name)
names = [name, internals.final_name("other")]
placed = place("in.txt")
if internals.is_main_process:
    hear({{"is_module": internals.is_module, "names": names, "placed": placed, "peers": peers}})
events = ("onstart", "onsuccess", "onerror")
internals.add_handlers(**{{
    event: lambda event=event, name=name: hear(f"{{name}} {{event}}") for event in events
}})

rule made:
    output: place("made.txt")
    shell: "test ! -e fails && touch {{output}}"

rule other:
    output: place("other.txt")
    shell: "touch {{output}}"
"""

IMPORTER = """
rule all:
    input: "a/made.txt", "made.txt"

module a:
    snakefile: "module.smk"
    prefix: "a"

use rule * from a exclude other as a_*

onstart:
    a.hear("importer starts")

module b:
    snakefile: "module.smk"

use rule * from b as b_*

onsuccess:
    b.hear("importer succeeds")
"""

LATER = """
import json
import sys
from pathlib import Path

sys.path.insert(0, {scripts!r})

from video_pipeline.workflow.snakemake_internals import Snakemake

internals = Snakemake(workflow)


def known(wildcards):
    known = [internals.is_dry_run, internals.calls_no_handlers]
    Path("known.json").write_text(json.dumps(known))
    return []


rule all:
    input: known
    shell: "true"
"""

RESTARTS = """
import sys
from pathlib import Path

sys.path.insert(0, {scripts!r})

from video_pipeline.workflow.snakemake_internals import Snakemake

Snakemake(workflow).do_not_restart(lambda outputs: "certain.txt" in outputs)


rule all:
    input: "certain.txt", "perhaps.txt"

rule tried:
    output: "{{name}}.txt"
    retries: 2
    shell: "echo {{wildcards.name}} >> tries.log; exit 1"
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
    typed = ("--config", "prompt=Count: #1")
    call(folder, "all", "local.txt", "--cores", "4", "--resources", "gpu=5", *settings, *typed)
    child = (
        "--mode",
        "subprocess",
        "--printshellcmds",
        "--target-jobs",
        "local:",
        "--allowed-rules",
        "local",
    )
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
        "deploys_software": False,
        "is_module": False,
        "final_name": "one",
        "config_arguments": ["prompt=Count: #1"],
        "has_terminal": True,
    }
    assert parsed(folder, main=False) == {
        "is_main_process": False,
        "only_inspects": False,
        "cores": 1,
        "gpu_limit": None,
        "set_resource": [None, None],
        "deploys_software": False,
        "is_module": False,
        "final_name": "one",
        "config_arguments": [],
        "has_terminal": False,
    }


def test_what_is_known_before_the_first_job(folder):
    assert started(folder, "local") == {
        "rules_to_run": ["all", "done", "local", "one", "three", "two"],
        "is_dry_run": False,
        "calls_no_handlers": False,
        "executor": "local",
        "runs_jobs_here": True,
        "planned_jobs": {},
        "planned_rules": [],
    }
    assert started(folder, "elsewhere") == {
        "rules_to_run": ["all", "done", "local", "one", "three", "two"],
        "is_dry_run": False,
        "calls_no_handlers": False,
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


@pytest.mark.parametrize("method", [DeploymentMethod.CONDA, DeploymentMethod.APPTAINER])
def test_jobs_with_software_of_their_own_are_known(method):
    settings = DeploymentSettings(deployment_method={method})
    assert Snakemake(SimpleNamespace(deployment_settings=settings)).deploys_software


def test_a_module_knows_its_place_in_the_importing_workflow(tmp_path):
    (tmp_path / "module.smk").write_text(MODULE.format(scripts=str(SCRIPTS)))
    (tmp_path / "Snakefile").write_text(IMPORTER)
    call(tmp_path, "--cores", "1")
    heard = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    first, second, *events = heard
    assert first == {
        **{"is_module": True, "names": ["a_made", None], "placed": "a/in.txt", "peers": []},
    }
    assert second == {
        **{"is_module": True, "names": ["b_made", "b_other"], "placed": "in.txt"},
        "peers": ["a_made"],
    }
    # Those of the importer come first.
    assert [events[0], events[3]] == ["importer starts", "importer succeeds"]
    assert sorted(events[1:3]) == ["a_made onstart", "b_made onstart"]
    assert sorted(events[4:]) == ["a_made onsuccess", "b_made onsuccess"]
    # The prefix was taken, so no path has it twice.
    assert (tmp_path / "a/made.txt").exists()
    assert (tmp_path / "made.txt").exists()
    (tmp_path / "fails").touch()
    call(tmp_path, "--cores", "1", "--forceall", succeeds=False)
    last = (tmp_path / "heard.jsonl").read_text().splitlines()[-2:]
    assert sorted(map(json.loads, last)) == ["a_made onerror", "b_made onerror"]


def test_a_dry_run_and_a_run_without_handlers_are_known(tmp_path):
    (tmp_path / "Snakefile").write_text(LATER.format(scripts=str(SCRIPTS)))
    for option in ("--dry-run", "--no-hooks"):
        call(tmp_path, "--cores", "1", option)
        known = json.loads((tmp_path / "known.json").read_text())
        assert known == [option == "--dry-run", option == "--no-hooks"]


def test_a_job_that_will_fail_again_is_not_restarted(tmp_path):
    (tmp_path / "Snakefile").write_text(RESTARTS.format(scripts=str(SCRIPTS)))
    call(tmp_path, "--cores", "1", "--keep-going", succeeds=False)
    tries = (tmp_path / "tries.log").read_text().split()
    assert sorted(tries) == ["certain", "perhaps", "perhaps", "perhaps"]


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
    "rules_to_run": lambda snakemake: snakemake.rules_to_run(),
    "final_name": lambda snakemake: snakemake.final_name("infer"),
    "take_prefix": lambda snakemake: snakemake.take_prefix(),
    "add_handlers": lambda snakemake: snakemake.add_handlers(onstart=print),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_missing_is_named_with_the_versions_that_have_it(name):
    parts = (
        *("dag", "resource_settings", "deployment_settings", "execution_settings", "modifier"),
    )
    workflow = SimpleNamespace(**{part: SimpleNamespace() for part in parts})
    with pytest.raises(
        UserError, match=r"^snakemake\S* [\d.]+ is not supported.*Tried: .*pip install snakemake"
    ):
        CALLS[name](Snakemake(workflow))


def test_a_job_without_a_number_of_restarts_is_named(monkeypatch):
    monkeypatch.delattr("snakemake.jobs.Job.restart_times")
    with pytest.raises(UserError, match=r"because its jobs\.Job\.restart_times differs"):
        Snakemake(SimpleNamespace()).do_not_restart(lambda outputs: True)


@pytest.mark.parametrize("name", ["replace_patterns", "is_literal"])
def test_patterns_that_are_missing_are_named(monkeypatch, name):
    monkeypatch.delattr("snakemake.io.WILDCARD_REGEX")
    monkeypatch.delattr("snakemake.pathvars.Pathvars")
    with pytest.raises(UserError, match="is not supported, because its io"):
        getattr(snakemake_internals, name)(str)


def test_the_workflow_stops_before_anything_else():
    with pytest.raises(WorkflowError, match=r"its workflow\.modifier\S* differs"):
        Invocation(SimpleNamespace(), {}, SCRIPTS)


def test_a_python_that_lacks_a_package_is_told_its_name():
    """The packages that :mod:`own_source` looks for are those that parsing imports, and Snakemake
    does not bring."""
    program = (
        "import sys, video_pipeline.workflow.invocation, video_pipeline.workflow.forecast\n"
        "import video_pipeline.workflow.weights\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    said = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=SCRIPTS)
    packages = packages_distributions()
    imported = {canonicalize_name(n) for name in said.split() for n in packages.get(name, ())}
    ours = {"video-pipeline", "setuptools"}  # Files for the start of Python import setuptools.
    needed = runpy.run_path(str(SCRIPTS / "own_source.py"))["NEEDED"]
    # Others come with some versions of Snakemake, or are imported with the first summary.
    assert imported - _required("snakemake") - ours <= set(needed)
    assert {"numpy", "orjson", "simpleeval"} <= imported


def _required(distribution: str, found: frozenset[str] = frozenset()) -> frozenset[str]:
    """The distributions that pip installs with ``distribution``, with their own."""
    found |= {canonicalize_name(distribution)}
    try:
        lines = requires(distribution) or ()
    except PackageNotFoundError:  # For another system.
        return found
    for line in map(Requirement, lines):
        is_here = line.marker is None or line.marker.evaluate({"extra": ""})
        if is_here and canonicalize_name(line.name) not in found:
            found = _required(line.name, found)
    return found
