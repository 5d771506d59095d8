"""What one call of Snakemake decides, with a stand-in for the object ``workflow`` of a Snakefile.
Its parts are Snakemake's own, but for those that exist only while it runs."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import PROJECT
from snakemake.exceptions import WorkflowError
from snakemake.jobs import Job
from snakemake.settings.types import (
    ConfigSettings,
    DeploymentSettings,
    ExecutionSettings,
    OutputSettings,
    ResourceSettings,
)
from video_pipeline.workflow import invocation
from video_pipeline.workflow.invocation import Invocation

MODIFIER = SimpleNamespace(
    is_main_snakefile=lambda: True,
    avail_rulename=lambda rule: rule,
    modify_rulename=lambda rule: rule,
)


@pytest.fixture
def invoke(here, monkeypatch):
    """Makes the invocation of a call that has jobs of some rules, with cores and GPUs."""
    here.write_samples([])
    here.configure(data={"num_shards": 2})
    monkeypatch.setattr(invocation, "stop_jobs_on_signals", lambda: None)
    monkeypatch.setattr(Job, "restart_times", Job.restart_times)  # Each run changes it.

    def job(rule: str) -> SimpleNamespace:
        return SimpleNamespace(rule=SimpleNamespace(name=rule))

    def make(*rules: str, gpus: int | None = None, here_too: bool = True) -> Invocation:
        jobs = [job(rule) for rule in rules or ("split",)]
        resources = ResourceSettings(cores=8, resources={} if gpus is None else {"gpu": gpus})
        workflow = SimpleNamespace(
            is_main_process=True,
            local_exec=here_too,
            executor_plugin=SimpleNamespace(name="local" if here_too else "elsewhere"),
            resource_settings=resources,
            global_resources=resources._parsed_resources,
            deployment_settings=DeploymentSettings(),
            execution_settings=ExecutionSettings(),
            dryrun=False,
            configfiles=[],
            output_settings=OutputSettings(),
            config_settings=ConfigSettings(),
            scheduler=None,
            modifier=MODIFIER,
            dag=SimpleNamespace(forcefiles=set(), needrun_jobs=lambda: jobs),
        )
        made = Invocation(workflow, here.settings, PROJECT / "workflow/scripts")
        made.forced = workflow.dag.forcefiles
        return made

    return make


def test_one_invocation_at_a_time_changes_the_output(invoke):
    first = invoke()
    first.begin()
    layout = first.stages[0].layout
    assert json.loads(layout.sharding.read_text())["num_shards"] == 2
    assert layout.config.exists()
    with pytest.raises(WorkflowError, match="another snakemake, retry or prune is at work"):
        invoke().begin()


def test_a_disk_that_is_full_at_the_start_is_explained(invoke, monkeypatch):
    def write(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(invocation, "write_text", write)
    for rule, path in (("split", "results/out.config.yaml"), ("plan", ".chunks/out/plan.config")):
        with pytest.raises(WorkflowError, match=f"No space .*{path}"):
            invoke(rule).begin()


@pytest.mark.parametrize("target", ["plan", "partial"])
def test_a_call_that_only_looks_takes_no_lock(invoke, target, capsys):
    invoke().begin()
    capsys.readouterr()
    reader = invoke(target)
    reader.begin()
    reader.explain_failure()
    assert capsys.readouterr().err == ""
    assert reader.stages[0].layout.plan_config.exists() is (target == "plan")


def test_an_output_whose_errors_were_opened_again_is_forced(invoke, capsys):
    run = invoke()
    (stage,) = run.stages
    assert run.samples(stage) == ["samples.jsonl"]
    assert run.forced == set()
    stage.layout.reopened.parent.mkdir(parents=True)
    stage.layout.reopened.touch()
    run.samples(stage)
    assert run.forced == {"results/out.jsonl"}
    assert "failed samples were opened again" in capsys.readouterr().err


def test_a_job_that_needs_no_gpu_has_no_gpu_at_its_first_attempt(invoke):
    run = invoke()
    (stage,) = run.stages
    assert run.infer_gpus(stage, 0, attempt=1) == 1
    stage.layout.chunks.mkdir(parents=True)
    manifest = {"split_id": "s", "rank_pending": [0, 3], "journal": "no such folder"}
    stage.layout.manifest.write_text(json.dumps(manifest))
    gpus = [run.infer_gpus(stage, rank, attempt) for rank in (0, 1) for attempt in (1, 2)]
    assert gpus == [0, 1, 1, 1]


def test_who_fails_for_certain_is_not_started_again_in_the_same_run(invoke):
    run = invoke()
    layout = run.stages[0].layout
    layout.chunks.mkdir(parents=True)
    layout.failure(1).write_text("of an earlier run, whose cause may be fixed")
    run.begin()

    def times(rank: int) -> int:
        job = SimpleNamespace(
            output=[str(layout.rank_file(rank))], rule=SimpleNamespace(restart_times=3)
        )
        return Job.restart_times.fget(job)

    assert [times(0), times(1)] == [3, 3]
    layout.failure(1).write_text("the task breaks its contract")
    assert [times(0), times(1)] == [3, 0]


def test_cores_are_shared_by_the_jobs_that_run_at_once(invoke):
    alone, pair, cluster = invoke(gpus=1), invoke(gpus=2), invoke(gpus=1, here_too=False)
    shares = [run.infer_threads(run.stages[0]) for run in (alone, pair, cluster)]
    assert shares == [8, 4, 4]
