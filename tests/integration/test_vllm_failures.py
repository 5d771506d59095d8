"""Real vLLM on the CPU, and what can go wrong with it: a request that it refuses, an engine process
that is killed, one that hangs."""

from __future__ import annotations

import signal

import psutil
import pytest
import yaml
from helpers import PROJECT, Run, read_jsonl, wait_until
from video_pipeline.testing.demo import write_demo

# Slow enough to be hit in the midst, and the last samples wait for what happens before them. One of
# the questions is longer than the model can take.
SETTINGS = {
    "data": {"num_shards": 1, "num_workers": 1, "id_field": "id"},
    "vllm": {"max_model_len": 2048},
    "sampling": {"max_tokens": 120, "ignore_eos": True},
    "run": {"task": "ask_long", "max_in_flight": 1, "engine_timeout_s": 20.0},
    "report": {"samples": 0},
}
TASK = """
import time
from pathlib import Path

from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task


@register_dataset("waiting_video")
class WaitingVideo(QwenVideoDataset):
    def __getitem__(self, i):
        while not Path(__file__).with_name(self.samples[i]["after"]).exists():
            time.sleep(0.05)
        return super().__getitem__(i)


@register_task
class AskLong(Task):
    name = "ask_long"
    dataset_name = "waiting_video"

    def build_messages(self, sample):
        text = "What happens? " * sample["times"]
        video = {"type": "video", "video": sample["__video_uri"]}
        return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Snakemake in the background."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    run = Run(tmp_path / "run")
    clips = read_jsonl(write_demo(run.folder))
    after = ["my.yaml"] * 3 + [signal.SIGKILL.name] * 2 + [signal.SIGSTOP.name]
    samples = [{**clip, "id": i, "times": 1000 if i == 2 else 1} for i, clip in enumerate(clips)]
    run.write_samples({**one, "after": name} for one, name in zip(samples, after, strict=True))
    run.write_plugin(TASK)
    run.settings = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text())
    run.settings["data"]["output_jsonl"] = "results/out.jsonl"
    run.configure(**SETTINGS)
    run.configure(run={"plugins": ["plugin.py"]})
    run.main = run.start_snakemake()
    yield run
    run.main.kill()
    run.main.wait()


def engine_processes(run) -> list[psutil.Process]:
    children = psutil.Process(run.main.pid).children(recursive=True)
    names = {child: " ".join([child.name(), *child.cmdline()]) for child in children}
    return [child for child, name in names.items() if "EngineCore" in name]


def test_the_engine_is_killed_and_hangs(started):
    """Each costs an attempt, and no answer."""
    for number in (signal.SIGKILL, signal.SIGSTOP):
        before = len(started.answers())
        wait_until(lambda before=before: len(started.answers()) > before, "it answers", 300)
        (engine,) = engine_processes(started)
        engine.send_signal(number)
        (started.folder / number.name).touch()
        wait_until(lambda gone=engine: not gone.is_running(), "it is gone", 300)
    assert started.main.wait() == 0, (started.folder / "background.log").read_text()[-3000:]
    states = [job["state"] for job in started.summary()["jobs"]]
    assert states == ["failed", "failed", "done"]
    assert started.answers() == dict.fromkeys(["0", "1", "3", "4", "5"], 1)
    stages = [record.get("__error", {}).get("stage", "ok") for record in started.records()]
    assert stages == ["ok", "ok", "generate", "ok", "ok", "ok"]
    message = started.records()[2]["__error"]["message"]
    assert "maximum context length is 2048" in message
    assert "at least 2049 input tokens" in message  # vLLM stops counting there
