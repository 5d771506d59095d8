"""Real vLLM's processes keep the lease of their GPU. vLLM computes on the CPU; a program stands in
for nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from helpers import PROJECT, SCRIPTS, Run, lock_holders, marked_processes, read_jsonl, wait_until
from video_pipeline.common.processes import MARK
from video_pipeline.gpu import devices as gpus
from video_pipeline.gpu import leases
from video_pipeline.testing.demo import write_demo

# infer.py, for one who has installed vLLM for GPUs
JOB = f"""
import runpy, sys
from video_pipeline.gpu import devices as gpus

gpus.installed_build = lambda: "0.32.0"
if __name__ == "__main__":
    sys.argv[0] = "{SCRIPTS}/infer.py"
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
# After its first sample it waits, however long the tests take.
DATASET = """
import time

from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset


@register_dataset("waiting_video")
class WaitingVideo(QwenVideoDataset):
    def __getitem__(self, i):
        while i > 0:
            time.sleep(0.05)
        return super().__getitem__(i)
"""
DEVICE = f"GPU-{os.getpid()}-of-test-vllm-lease"


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[gpus.Device]:
    """The machine's one GPU."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in *=index,*) echo "0, {DEVICE}, A card, [N/A]" ;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in (gpus.VISIBLE, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    yield gpus.Device("0", DEVICE)
    leases.lock_file(gpus.Device("0", DEVICE)).unlink(missing_ok=True)


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: gpus.Device
) -> Iterator[subprocess.Popen[bytes]]:
    """A job whose engine has answered something, and that is not done."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    run = Run(tmp_path / "run")
    run.write_samples(read_jsonl(write_demo(run.folder)))
    run.settings = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text())
    run.settings["data"]["output_jsonl"] = "results/out.jsonl"
    run.configure(
        data={"num_shards": 1, "num_workers": 1},
        vllm={"distributed_executor_backend": "mp"},  # a worker process apart from the engine's
        run={"dataset": "waiting_video", "plugins": ["plugin.py"]},
    )
    run.write_plugin(DATASET)
    run.script("split.py", "--num-shards", "1")
    (run.folder / "job.py").write_text(JOB)
    command = [sys.executable, "job.py", "--config", "my.yaml", "--num-shards", "1", "--rank", "0"]
    with open(run.folder / "job.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=run.folder,
            stderr=log,
            stdout=log,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        )
    wait_until(lambda: process.poll() is not None or run.answers(), "there is an answer", 300)
    assert process.poll() is None, (run.folder / "job.log").read_text()[-3000:]
    yield process
    process.kill()
    process.wait()


def test_a_worker_of_vllm_keeps_the_lease(
    job: subprocess.Popen[bytes], device: gpus.Device
) -> None:
    """The job and its worker hold it, and no other process; the worker alone is enough."""
    me = psutil.Process(job.pid)
    (worker,) = [psutil.Process(pid) for pid in lock_holders(leases.lock_file(device)) - {job.pid}]
    assert "Worker" in " ".join([worker.name(), *worker.cmdline()])
    assert worker.ppid() != job.pid  # the engine's process is between them
    (watch,) = [child for child in me.children() if "processes.py" in " ".join(child.cmdline())]
    clean_up = watch.cmdline()
    mark = worker.environ()[MARK]  # the watch finds it, whatever vLLM calls the process
    worker.suspend()  # as if the driver held it; else it ends when its parents are gone
    me.suspend()  # it would start another watch process
    watch.kill()
    job.kill()
    job.wait()
    assert lock_holders(leases.lock_file(device)) == {worker.pid}
    worker.kill()
    wait_until(lambda: not lock_holders(leases.lock_file(device)), "the kernel has freed the lease")
    subprocess.run(clean_up, stdin=subprocess.DEVNULL, check=True)
    wait_until(
        lambda: all(ends_by_itself(pid) for pid in marked_processes(mark)), "the others are gone"
    )


def ends_by_itself(pid: int) -> bool:
    """Whether it is one that does so after it has removed the shared memory of others, or has ended
    meanwhile."""
    try:
        return "resource_tracker" in " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return True
