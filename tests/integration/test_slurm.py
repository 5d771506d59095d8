"""The workflow on a real SLURM with ``profiles/slurm``: one run in which everything goes wrong.

Four shards on two nodes with three GPUs each. The last sample of ranks 0, 1 and 2 is a gate: it is
read for as long as the test wants, so that their jobs are still at work when something happens.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field

import psutil
import pytest
import yaml
from helpers import PROJECT, Run, keys, read_jsonl, samples, wait_until
from slurm.cluster import AT_ONCE, GPUS, NODES, Cluster, missing_programs

pytestmark = pytest.mark.skipif(
    bool(missing_programs()),
    reason=f"SLURM is not installed (no {', '.join(missing_programs())}): "
    "apt-get install munge slurmctld slurmd slurm-client",
)

RANKS = 4
COUNT = 5 * RANKS - 1  # rank 3 has no gate
GATES = range(4 * RANKS, COUNT)
PROFILE_FOLDER = PROJECT / "profiles" / "slurm"
PROFILE = (
    *("--workflow-profile", str(PROFILE_FOLDER)),
    *("--resources", f"gpu={RANKS}"),
    # the profile's own are for a cluster, not for a test
    *("--slurm-init-seconds-before-status-checks", "1"),
    *("--max-status-checks-per-second", "10", "--latency-wait", "5"),
)


@dataclass(frozen=True)
class Job:
    """One job of the cluster, as squeue shows it; ``rule`` is the plugin's comment."""

    id: str
    rule: str
    cpus: str
    state: str


@dataclass
class Story:
    """What happened.

    Attributes:
        run: The run.
        devices: Job id -> the devices it saw, as (node, ``CUDA_VISIBLE_DEVICES``).
        jobs: All jobs, in the order of their submission.
        killed_at: The jobs that were there when the main process was killed.
        again: What Snakemake said when all was done.
        jobs_again: How many jobs that submitted.
    """

    run: Run
    devices: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    jobs: list[Job] = field(default_factory=list)
    killed_at: list[Job] = field(default_factory=list)
    again: str = ""
    jobs_again: int = 0

    def of(self, rank: int) -> list[Job]:
        """The inference jobs of one rank."""
        return [job for job in self.jobs if job.rule == f"rule_infer_wildcards_{rank}"]

    def states(self, rank: int) -> list[str]:
        """How the inference jobs of one rank ended."""
        return [job.state for job in self.of(rank)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A SLURM of its own."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def story(tmp_path_factory, cluster):
    """Rank 0's process is killed, rank 1's job is cancelled, rank 2's time is up, rank 3 finishes;
    then the main process is killed and started again while the other three are at work again."""
    run = Run(tmp_path_factory.mktemp("runs") / "my user's run")
    story = Story(run)
    # The samples at the gates wait as long as it takes.
    run.configure(data={"num_shards": "auto", "sample_timeout_s": 3600.0})
    run.write_samples({**one, "gate": one["id"] in GATES} for one in samples(COUNT))
    run.edit_plugin(
        '        misbehave(sample.get("do"))\n',
        """\
        with open(HERE / "devices.txt", "a") as stream:
            names = ("SLURM_JOB_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES")
            stream.write(" ".join(os.environ.get(name, "none") for name in names) + "\\n")
        while sample["gate"] and not (HERE / "open").exists():
            time.sleep(0.1)
""",
    )

    def jobs() -> list[Job]:
        listed = cluster.run("squeue", "-h", "--states=all", "--sort=i", "-o", "%i %k %C %T")
        story.jobs = [Job(*line.split()) for line in listed.splitlines()]
        return story.jobs

    def running(rank: int, number: int) -> bool:
        """Whether the given job of a rank waits at the gate or for the one before."""
        jobs()
        return [job.state for job in story.of(rank)[number - 1 :]] == ["RUNNING"]

    main = start(run, cluster)
    try:
        wait_until(lambda: len(run.answers()) == COUNT - len(GATES), "all is at the gates")
        assert all(running(rank, 1) for rank in range(3)), jobs()
        os.kill(process_of(run, 0).pid, signal.SIGKILL)
        cluster.run("scancel", story.of(1)[0].id)
        cluster.run("scontrol", "update", f"JobId={story.of(2)[0].id}", "TimeLimit=0")
        wait_until(
            lambda: all(
                running(rank, 2) and "1 of 5 samples pending" in log_of(run, rank)
                for rank in range(3)
            ),
            "the three are submitted again",
            240,
        )
        log = max((run.folder / ".snakemake/log").glob("*.log"))
        wait_until(lambda: "(Rule: infer)" in log.read_text(), "it is seen that rank 3 is done")
        main.kill()
        main.wait()
        story.killed_at = jobs()
        main = start(run, cluster)
        wait_until(
            lambda: all("waiting for host" in log_of(run, rank) for rank in range(3)),
            "the duplicates wait",
        )
        assert all(job in jobs() for job in story.killed_at)
        (run.folder / "open").touch()
        assert main.wait(timeout=300) == 0, said(run)
    finally:
        main.kill()
        main.wait()
    before = len(jobs())
    assert start(run, cluster).wait(timeout=300) == 0
    story.again = said(run)
    story.jobs_again = len(jobs()) - before
    for line in (run.folder / "devices.txt").read_text().splitlines():
        job, node, devices = line.split()
        story.devices[job].add((node, devices))
    return story


def start(run: Run, cluster: Cluster) -> subprocess.Popen[bytes]:
    """Start Snakemake in the background, as the README says: without ``--cores``."""
    with open(run.folder / "said.txt", "wb") as log:
        return subprocess.Popen(
            [
                *(sys.executable, str(AT_ONCE), "--snakefile", str(PROJECT / "Snakefile")),
                *("--configfile", "my.yaml", *PROFILE),
            ],
            cwd=run.folder,
            env=cluster.environment,
            stdout=log,
            stderr=log,
        )


def said(run: Run) -> str:
    """What the last Snakemake has said."""
    return (run.folder / "said.txt").read_text(encoding="utf-8")


def process_of(run: Run, rank: int) -> psutil.Process:
    """The process that infers a rank."""
    (process,) = [
        process
        for process in psutil.process_iter(["cmdline", "name"])
        if process.info["name"].startswith("python")
        and ["--rank", str(rank)] == (process.info["cmdline"] or [])[-4:-2]
        and process.cwd() == str(run.folder)
    ]
    return process


def log_of(run: Run, rank: int) -> str:
    """The log of a rank's last job; empty before it has begun."""
    try:
        return run.log(f"infer.rank{rank}")
    except FileNotFoundError:
        return ""


def test_no_sample_is_inferred_twice(story):
    assert story.run.answers() == dict.fromkeys(keys(COUNT), 1)
    assert [record["__key"] for record in story.run.records()] == keys(COUNT)


def test_each_job_has_a_device_of_its_own(story):
    first = [story.of(rank)[0] for rank in range(RANKS)]
    devices = [device for job in first for device in story.devices[job.id]]
    assert len(devices) == len(set(devices)) == RANKS
    known = {(f"node{n}", str(gpu)) for n in range(1, NODES + 1) for gpu in range(GPUS)}
    assert set(devices) <= known


def test_each_job_has_the_cores_of_the_profile(story):
    profile = yaml.safe_load((PROFILE_FOLDER / "profile.yaml").read_text())
    cores = str(profile["set-threads"]["infer"])
    assert {job.cpus for rank in range(RANKS) for job in story.of(rank)} == {cores}


def test_what_fails_is_cancelled_or_has_no_time_left_is_submitted_again(story):
    assert [story.states(rank)[0] for rank in range(3)] == ["FAILED", "CANCELLED", "TIMEOUT"]
    assert story.states(3) == ["COMPLETED"]


def test_jobs_outlive_the_main_process_and_duplicates_infer_nothing(story):
    """The three that were at work finish; those that the second main process submits wait."""
    holders = {}
    for journal in story.run.journals():
        for path in journal.glob("attempt.*.jsonl"):
            head, *records = read_jsonl(path, torn=True)
            holders.update((record["__key"], head["job"]) for record in records)
    for rank in range(3):
        _, second, third = story.of(rank)
        assert (second.state, third.state) == ("COMPLETED", "COMPLETED")
        assert holders[str(GATES[rank])] == second.id
        assert third.id not in holders.values()
        assert "all 5 samples are done" in story.run.log(f"infer.rank{rank}")


def test_only_what_is_missing_is_submitted(story):
    rules = [job.rule for job in story.jobs]
    assert rules.count("rule_split") == rules.count("rule_consolidate") == 1
    assert len(story.of(3)) == 1
    assert "Nothing to be done" in story.again
    assert story.jobs_again == 0
