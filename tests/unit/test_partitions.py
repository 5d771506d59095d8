"""What jobs request from a cluster."""

from __future__ import annotations

import re
import subprocess
from contextlib import nullcontext

import pytest
import yaml
from helpers import PROJECT
from snakemake_interface_executor_plugins.utils import format_cli_arg
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding
from video_pipeline.run.stages import Stage
from video_pipeline.workflow import cluster
from video_pipeline.workflow.cluster import (
    check_arguments,
    check_jobs,
    check_partitions,
    requested_mb,
)
from video_pipeline.workflow.memory import JobMemory
from video_pipeline.workflow.snakemake_internals import PlannedJob


def check(named: dict[str, str | None], *, has_rules: bool) -> None:
    """Check one job of each rule."""
    jobs = {rule: {"slurm_partition": name} for rule, name in named.items()}
    check_partitions(jobs, has_rules=has_rules)


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """A function that makes `sinfo` a script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def make(script: str) -> None:
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sinfo").chmod(0o755)

    return make


def test_partitions_that_are_there(sinfo):
    sinfo("printf 'cpu*\\ngpu\\ngpu_long\\n'")
    check({"split": None, "infer": "gpu,gpu_long"}, has_rules=False)


@pytest.mark.parametrize(
    ("partitions", "named", "message"),
    [
        ("cpu\ngpu", {"split": None}, "no partition is set for split, and none is the default; "),
        ("cpu*\ngpu", {"infer": "gpus"}, "infer: there is no partition gpus.*did you mean gpu?"),
        ("cpu*\ngpu", {"infer": "gpu,long"}, "no partition long; this cluster has cpu, gpu"),
    ],
)
def test_partitions_that_cannot_work(sinfo, partitions, named, message):
    sinfo(f"echo '{partitions}'")
    with pytest.raises(UserError, match=message):
        check(named, has_rules=False)


def test_a_sinfo_that_fails_matters_only_without_a_partition(sinfo, monkeypatch):
    for script, seconds, why in (
        ("echo down >&2; exit 1", cluster.SINFO_SECONDS, "sinfo failed: down"),
        ("exec sleep 60", 0.2, "sinfo has not answered"),
    ):
        sinfo(script)
        monkeypatch.setattr(cluster, "SINFO_SECONDS", seconds)
        check({"split": "cpu"}, has_rules=False)
        check({"split": None}, has_rules=True)
        with pytest.raises(UserError, match=rf"no partition is set for split.*{why}"):
            check({"split": None, "infer": "gpu"}, has_rules=False)


def test_a_machine_without_sinfo(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sinfo: No such file"):
        check({"split": None}, has_rules=False)


def test_jobs_for_another_cluster_are_left_to_it(sinfo):
    sinfo("echo 'cpu'")
    check_partitions({"infer": {"slurm_cluster": "other"}}, has_rules=False)


def shell(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("prompt", "is_refused"),
    [
        ("What's there?", False),
        ('Answer "yes" or "no".', False),
        ("""What's "it"?""", True),
        ("Answer `true` or `false`.", True),
        ("$(true)", True),
    ],
)
def test_a_text_that_a_shell_changes_stays_out_of_the_command_line_of_jobs(prompt, is_refused):
    argument = f"prompt={prompt}"
    with pytest.raises(UserError, match="--config prompt: ") if is_refused else nullcontext():
        check_arguments([argument])
    given = format_cli_arg("--config", [argument]).removeprefix("--config").replace('"', '\\"')
    job = shell(f'printf %s "{given}"')  # As the plugin gives it to `sbatch --wrap`.
    assert (shell(f"printf %s {job}") != argument) == is_refused


def test_memory_may_be_requested_for_each_cpu():
    assert requested_mb({"mem_mb": 5}, 8) == 5
    assert requested_mb({"mem_mb": 5, "mem_mb_per_cpu": 2}, 8) == 16
    assert requested_mb({}, 8) is None


def test_the_memory_of_inference_jobs_is_checked_and_of_no_others(sinfo, tmp_path):
    sinfo("echo 'cpu*'")
    config = config_of(data={"num_shards": 1})
    layout = Layout(tmp_path / "out.jsonl", 1)
    stages = [Stage("ask", config, Sharding(1), layout), Stage("done", config, Sharding(1), layout)]
    jobs = {rule: PlannedJob(8, {"mem_mb": 8000}) for rule in ("split_ask", "report_ask")}
    assert check_jobs(jobs, stages, has_rules=False) == []
    (warning,) = check_jobs(
        {**jobs, "infer_ask": PlannedJob(8, {"mem_mb": 64000})}, stages, has_rules=False
    )
    assert warning.startswith("infer_ask: mem_mb=64000")
    with pytest.raises(UserError, match="infer_ask: mem_mb=8000 is 8 GB"):
        check_jobs({"infer_ask": PlannedJob(8, {"mem_mb": 8000})}, stages, has_rules=False)


def config_of(**sections) -> Config:
    """A configuration with vLLM."""
    return Config.model_validate(sections)


def test_the_profile_has_enough_memory_for_the_defaults_but_not_for_the_worst():
    profile = yaml.safe_load((PROJECT / "profiles/slurm/profile.yaml").read_text())
    job = JobMemory.of(config_of(), profile["set-threads"]["infer"])
    mem_mb = profile["set-resources"]["infer"]["mem_mb"]
    warning = job.check("infer", mem_mb)
    assert "8 decode processes may request 16 GB each" in warning
    # what the warning says to set is no warning any more
    share = float(re.search(r"worker_memory_gb: ([\d.]+)", warning)[1])
    fits = JobMemory.of(config_of(data={"worker_memory_gb": share - 0.05}), 8)
    assert fits.check("infer", mem_mb) == ""
    assert JobMemory.of(config_of(data={"worker_memory_gb": None}), 8).check("infer", mem_mb) == ""


@pytest.mark.parametrize(("decoder", "more"), [("cpu", 0), ("auto", 4), ("nvdec", 8)])
def test_decode_processes_that_use_the_gpu_share_nothing(decoder, more):
    least = JobMemory.of(config_of(vision={"decoder": decoder}), 8).least
    assert least == pytest.approx(JobMemory.of(config_of(), 8).least + more * 1.0)


def test_too_little_memory_is_an_error_that_says_how_much_does():
    # the profile's memory of all other rules
    with pytest.raises(UserError, match=r"infer_ask: mem_mb=8000 is 8 GB.*8 in /dev/shm") as error:
        JobMemory.of(config_of(), 8).check("infer_ask", 8000)
    enough = int(re.search(r"profile to (\d+)", str(error.value))[1])
    JobMemory.of(config_of(), 8).check("infer_ask", enough)


def test_the_memory_of_the_defaults():
    memory = JobMemory.of(config_of(), 8)
    assert memory.decode_processes == 8
    assert memory.least == pytest.approx(3 + 1.3 + 8 * 0.35 + 8)
    assert memory.most == pytest.approx(3 + 1.3 + 8 * 16 + 8)


def test_a_job_without_a_core_of_its_own_decodes_in_one_process():
    """With fewer cores than GPUs, Snakemake gives each job none."""
    assert config_of().data.decode_processes(0) == 1


def test_memory_grows_with_what_is_configured():
    base = JobMemory.of(config_of(), 4)
    assert base.decode_processes == 4
    assert JobMemory.of(config_of(data={"num_workers": 9}), 4).decode_processes == 9
    two = JobMemory.of(config_of(vllm={"tensor_parallel_size": 2}), 4)
    assert two.engine == 2 * base.engine
    offload = JobMemory.of(config_of(vllm={"cpu_offload_gb": 10}), 4)
    assert offload.least == pytest.approx(base.least + 10)
    as_text = JobMemory.of(config_of(vllm={"cpu_offload_gb": "10"}), 4)
    assert as_text == offload
    more = JobMemory.of(config_of(data={"max_ready_gb": 20}), 4)
    assert more.least == pytest.approx(base.least + 12)
    simulated = JobMemory.of(config_of(run={"engine": "simulated"}), 4)
    assert (simulated.engine, simulated.fork_server) == (0, 0)
