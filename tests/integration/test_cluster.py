"""What is special about a cluster: settings of the profile in stages, jobs that need no GPU, and a
partition that is looked up before anything is submitted. See test_slurm.py for what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import PROJECT, Run, keys, samples
from slurm.cluster import AT_ONCE, Cluster, missing_programs
from video_pipeline.infer.infer import Unfinished, infer
from video_pipeline.journal.format import REOPENS
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.workflow.pending import needs_no_gpu

PROFILE_FOLDER = PROJECT / "profiles" / "slurm"
PROFILE = yaml.safe_load((PROFILE_FOLDER / "profile.yaml").read_text())
OUTPUT = "results/out.jsonl"  # as a target it leaves out the job of the report
needs_slurm = pytest.mark.skipif(bool(missing_programs()), reason="SLURM is not installed")


@pytest.fixture
def cluster(tmp_path_factory):
    """A SLURM of its own."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    yield cluster
    cluster.stop()


def snakemake(run: Run, environment: dict[str, str], *targets: str) -> tuple[int, str]:
    """Run Snakemake with the profile; returns its exit code and what it said."""
    done = subprocess.run(
        [
            *(sys.executable, str(AT_ONCE), *targets),
            *("--snakefile", str(PROJECT / "Snakefile"), "--configfile", "my.yaml"),
            *("--workflow-profile", str(PROFILE_FOLDER)),
            # the profile's own are for a cluster, not for a test
            *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"),
            *("--max-status-checks-per-second", "10", "--resources", "gpu=1"),
        ],
        cwd=run.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def jobs(cluster: Cluster) -> dict[str, list[str]]:
    """CPUs, memory, minutes and GPUs of the last job of each rule."""
    columns = "Comment:60,NumCPUs:10,MinMemory:12,TimeLimit:14,tres-per-job:20"
    listed = cluster.run("squeue", "-h", "--states=all", "--sort=i", "-O", columns)
    return {rule: rest for rule, *rest in (line.split() for line in listed.splitlines())}


@needs_slurm
def test_stages_have_the_settings_of_the_profile_and_publish_without_a_gpu(run, cluster):
    run.write_samples(samples(2))
    run.settings["stages"] = [{"name": "ask"}]
    run.configure(data={"num_shards": 1})
    code, said = snakemake(run, cluster.environment, OUTPUT)
    assert code == 0, said
    threads, infer = str(PROFILE["set-threads"]["infer"]), PROFILE["set-resources"]["infer"]
    memory = f"{infer['mem_mb'] / 1024:.2f}G"
    assert infer["runtime"] == 24 * 60
    asked = jobs(cluster)
    name = "rule_infer_ask_wildcards_0"
    assert asked[name][:3] == [threads, memory, "1-00:00:00"]
    assert asked[name][3] == "gres:gpu:1"
    # a task that parses otherwise: all is done, and published again without a GPU
    run.edit_plugin('"answer": generated_text.strip()', '"answer": "new"')
    code, said = snakemake(run, cluster.environment, OUTPUT)
    assert code == 0, said
    asked = jobs(cluster)
    assert asked[name][:3] == [threads, memory, "1-00:00:00"]
    assert asked[name][3] == "N/A"
    assert [record["answer"] for record in run.records()] == ["new", "new"]
    assert run.answers() == dict.fromkeys(keys(2), 1)


def test_without_a_partition_a_failing_sinfo_is_an_error_at_once(run, tmp_path):
    run.write_samples(samples(1))
    environment = with_sinfo(tmp_path, "echo no controller >&2; exit 1")
    began = time.monotonic()
    code, said = snakemake(run, environment)
    assert code == 1
    assert "no partition is set for consolidate, infer, report, split" in said
    assert "sinfo failed: no controller" in said
    assert time.monotonic() - began < 60
    assert not run.output.exists()


def with_sinfo(folder: Path, script: str) -> dict[str, str]:
    """An environment in which `sinfo` is ``script``."""
    bin = folder / "bin"
    bin.mkdir()
    (bin / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
    (bin / "sinfo").chmod(0o755)
    return {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}"}


def test_what_is_set_for_one_stage_goes_before_what_is_set_for_all(run):
    run.write_samples(samples(1))
    run.settings["stages"] = [{"name": "ask"}, {"name": "again"}]
    run.configure()
    resources = ("infer:mem_mb=777", "infer:runtime=5", "infer_again:runtime=6")
    said = run.snakemake(
        *("-n", "--set-threads", "infer=2", "infer_again=1", "--set-resources", *resources),
        snakefile=run.without_messages(),
    )
    ask, again = (job_of(said, f"infer_{name}") for name in ("ask", "again"))
    assert "threads: 2" in ask
    assert "threads: 2" not in again
    assert "mem_mb=777" in ask
    assert "mem_mb=777" in again
    assert "runtime=5" in ask
    assert "runtime=6" in again


def job_of(said: str, rule: str) -> str:
    """What a dry run says of the job of a rule."""
    return next(job for job in said.split("\n[") if f"rule {rule}:" in job)


def test_a_job_without_a_gpu_infers_nothing_and_leaves_it_to_the_next_attempt(splitting):
    splitting(samples(3), 1)
    run, layout = splitting.run, splitting.layout
    with pytest.raises(Unfinished, match="3 of them are pending now, and the job has no GPU"):
        infer(run.config, layout, 0, 1, only_writes=True)
    assert not run.answers()
    infer(run.config, layout, 0, 1)
    assert needs_no_gpu(layout, 0)
    layout.rank_file(0).unlink()
    infer(run.config, layout, 0, 1, only_writes=True)
    assert len(layout.rank_file(0).read_text().splitlines()) == 3
    # what is opened again has a GPU at once
    assert reopen(layout)
    assert not needs_no_gpu(layout, 0)


def reopen(layout: Layout) -> bool:
    """Open errors again, of which there are none here, as `retry` does."""
    journal = Path(Manifest.read(layout).journal)
    with JournalWriter(journal, REOPENS) as writer:
        return writer.path.exists()
