"""The demo workflow with real vLLM on the CPU: tiny random model, real clips, two ranks."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from video_pipeline.config import load_config
from video_pipeline.engine.base import Constraints, EngineDead
from video_pipeline.errors import UserError
from video_pipeline.run.throughput import CLEAR_SECONDS

ROOT = Path(__file__).parents[2]
OUTPUT = "results/output.describe.jsonl"

# The task of the README and of the public contract, as it stands.
MY_TASK = """
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

@register_task
class MyTask(Task):
    name = "my_task"
    dataset_name = "qwen_video"

    def build_messages(self, sample):
        return [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": [
                {"type": "text", "text": "What happens in this video?"},
                {"type": "video", "video": sample["__video_uri"]},
            ]},
        ]

    def parse(self, generated_text, sample):
        return {"answer": generated_text.strip()}
"""


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command with the programs of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # two engines on two cores: vLLM's own binding would put both on the same one
    environment = {**os.environ, "PATH": path, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / OUTPUT).read_text().splitlines()]


def answers_in_journal(folder: Path) -> int:
    files = (folder / "results/.journal").rglob("attempt.*.jsonl")
    return sum(file.read_text().count('"output_text":') for file in files)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A folder in which ``make demo`` has run."""
    folder = tmp_path_factory.mktemp("demo")
    finished = run("make", "demo", f"DEMO={folder}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    shown = [line for line in finished.stdout.splitlines() if line.startswith('{"__key"')]
    assert [json.loads(line) for line in shown] == records(folder)[:3]
    assert f"{folder}/{OUTPUT}" in finished.stdout
    return folder


def test_every_clip_is_answered(demo):
    found = records(demo)
    paths = [json.loads(line)["path"] for line in open(demo / "samples.jsonl")]
    assert [record["input"]["path"] for record in found] == paths
    assert len(paths) == 6
    for record in found:
        assert record["__status"] == "ok"
        assert record["__model"] == "model"
        assert record["__task"] == "describe"
        assert record["__usage"]["completion_tokens"] == 24
        assert record["description"] == record["output_text"].strip()
    # a random model sees the videos all the same: different clips, different answers
    assert len({record["output_text"] for record in found}) == 6


def test_rank_files_are_gone_and_summary_is_there(demo):
    assert not list(demo.glob("results/*.rank*.jsonl"))
    summary = json.loads((demo / "results/output.describe.summary.json").read_text())
    assert summary["samples"]["ok"] == 6
    assert summary["samples"]["truncated_at"] == {"sampling.max_tokens": 6}  # it never ends
    assert 0 <= summary["throughput"]["decode_workers_load"] <= 1
    is_short = summary["throughput"]["seconds"] < CLEAR_SECONDS  # unless this machine is very busy
    assert (summary["throughput"]["bound"] == "too short to tell") is is_short
    assert {job["rank"] for job in summary["jobs"]} == {0, 1}
    assert summary["throughput"]["videos_per_second"] > 0
    assert summary["throughput"]["video_hours_per_hour"] > 0


def test_second_demo_does_nothing(demo):
    again = run("make", "demo", f"DEMO={demo}")
    assert again.returncode == 0, again.stderr
    assert "Nothing to be done" in again.stdout + again.stderr


def test_deleted_output_comes_back_without_a_model(demo):
    before = answers_in_journal(demo)
    kept = (demo / OUTPUT).read_bytes()
    (demo / OUTPUT).unlink()
    # without --resources: the plan file knows the number of shards
    config = ROOT / "config/demo.yaml"
    again = run("snakemake", "--cores", "2", "--configfile", config, "--directory", demo)
    assert again.returncode == 0, again.stderr
    assert (demo / OUTPUT).read_bytes() == kept
    assert answers_in_journal(demo) == before == 6
    for rank in (0, 1):
        log = (demo / f"logs/output.describe/infer.rank{rank}.log").read_text()
        assert "samples are done" in log
        assert "vllm" not in log.replace(str(ROOT), "").lower()  # whatever the folder is called


def test_the_contracts_task_runs_from_a_plugin_file(demo, tmp_path, forked_engine):
    for name in ("clips", "model"):
        shutil.copytree(demo / name, tmp_path / name)
    (tmp_path / "clips/cut.mp4").write_bytes((demo / "clips/h264.mp4").read_bytes()[:2000])
    (tmp_path / "samples.jsonl").write_text(
        '{"path": "clips/portrait.mp4", "video_start": 0.2, "video_end": 1.2}\n'
        '{"path": "clips/cut.mp4"}\n'
        '{"path": "clips/portrait.mp4"}\n'
    )
    (tmp_path / "my_plugin.py").write_text(MY_TASK)
    (tmp_path / "my.yaml").write_text(
        "run: {task: my_task, plugins: [my_plugin.py]}\nvision: {fps: 4}\n"
    )
    configs = (ROOT / "config/demo.yaml", tmp_path / "my.yaml")
    finished = run("snakemake", "--cores", "2", "--configfile", *configs, "--directory", tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    segment, broken, whole = records(tmp_path)
    assert whole["answer"] == whole["output_text"].strip()
    assert segment["__usage"]["prompt_tokens"] < whole["__usage"]["prompt_tokens"]
    assert broken["__error"]["stage"] == "read"
    assert "moov atom not found" in broken["__error"]["message"]  # FFmpeg's own word


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": {"n": 2}}, "n must be 1 when using greedy sampling"),
        ({"sampling": {"top_p": 7}}, "refuses the section sampling"),
        ({"vllm": {"dtype": "float99"}}, "refuses vllm.dtype: "),
        ({"vllm": {"max_model_len": 300}}, "visual tokens .* vllm.max_model_len: 300"),
    ],
)
def test_the_engine_refuses_what_vllm_does_not_know(demo, monkeypatch, settings, message):
    from video_pipeline.engine.vllm.engine import VllmEngine

    monkeypatch.chdir(demo)
    base = load_config(ROOT / "config/demo.yaml").model_dump()
    for section, values in settings.items():
        base[section] = {**base[section], **values}
    with pytest.raises(UserError, match=message):
        VllmEngine(load_config(base))


def test_an_engine_that_is_told_to_end_leaves_no_answers():
    """vLLM hands back what it has of each request, with the reason ``abort``."""
    from video_pipeline.engine.vllm.engine import VllmEngine

    completion = SimpleNamespace(text="It ra", token_ids=[1, 2], finish_reason="abort")

    async def generate(*args, **kwargs):
        yield SimpleNamespace(outputs=[completion], prompt_token_ids=[1])

    engine = object.__new__(VllmEngine)
    engine._llm = SimpleNamespace(generate=generate, errored=False)
    engine._sampling_under, engine._lora = {Constraints(): None}, None
    engine._chat_template_kwargs = {}
    with pytest.raises(EngineDead, match="told to end"):
        asyncio.run(engine.generate("a", {}, Constraints()))
