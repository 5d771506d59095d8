"""Faults in the processes of real vLLM on the CPU: what the job then says, and whether another
attempt is made."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import time
from types import SimpleNamespace

import pytest
import yaml
from helpers import PROJECT, Run, read_jsonl
from video_pipeline.engine.base import Constraints, EngineDead, RequestRefused
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout
from video_pipeline.testing.demo import write_demo

INFER = ("infer.py", "--num-shards", "1", "--rank", "0")

# A plugin of vLLM, which each of its processes loads. The lines of the file `faults` say what goes
# wrong, one after the other; each fault happens once.
FAULTS = """
from pathlib import Path

import torch

FILE = Path(__file__).with_name("faults")


def happen(where):
    fault, *later = FILE.read_text().split("\\n") if FILE.exists() else [""]
    if fault.startswith(where):
        FILE.write_text("\\n".join(later))
        if fault.endswith("out of memory"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        raise RuntimeError("the worker's own\\nword")


def inject():
    from vllm.v1.worker.cpu_worker import CPUWorker

    def faulty(name):
        sound = getattr(CPUWorker, name)

        def method(self, *args, **kwargs):
            happen(name)
            return sound(self, *args, **kwargs)

        setattr(CPUWorker, name, method)

    faulty("load_model")
    faulty("execute_model")
"""


@pytest.fixture
def run(tmp_path, monkeypatch, forked_engine) -> Run:
    """The demo's clips on one rank, with vLLM's workers in processes of their own, as with several
    GPUs; the file ``run.faults`` breaks them."""
    run = Run(tmp_path / "run")
    run.write_samples([{**one, "id": i} for i, one in enumerate(_clips(run))])
    run.settings = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text())
    run.settings["data"]["output_jsonl"] = "results/out.jsonl"
    run.configure(
        data={"num_shards": 1, "num_workers": 1, "id_field": "id"},
        vllm={"distributed_executor_backend": "mp"},
        report={"samples": 0},
    )
    plugins = tmp_path / "plugins"
    info = plugins / "faults-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faults\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[vllm.general_plugins]\nfaults = faults:inject\n")
    (plugins / "faults.py").write_text(FAULTS)
    monkeypatch.setenv("PYTHONPATH", str(plugins), prepend=":")
    run.faults = plugins / "faults"
    return run


def _clips(run: Run) -> list[dict]:
    return read_jsonl(write_demo(run.folder))[:2]


def test_faults_of_the_workers_cost_an_attempt_each(run):
    """One has no memory, which was another's, and one ends in the midst: Snakemake tries again by
    itself, and the last line of each log is the worker's own word."""
    run.faults.write_text("load_model out of memory\nexecute_model")
    run.snakemake()
    said = "vLLM's engine did not start: OutOfMemoryError: CUDA out of memory. Tried to allocate"
    first, second, third = (run.log(f"infer.rank0.attempt{number}") for number in (1, 2, 3))
    assert said in first.splitlines()[-1]
    assert f"(log: {run.folder}/logs/out/infer.rank0.attempt1.log)" in first.splitlines()[-1]
    assert said not in second
    assert "the engine died: RuntimeError: the worker's own word" in second.splitlines()[-1]
    assert "the worker's own word" not in third
    assert third == run.log("infer.rank0")
    assert [record["__status"] for record in run.records()] == ["ok", "ok"]
    assert list(run.answers().values()) == [1, 1]


def test_a_setting_that_cannot_work_is_said_once(run):
    """Its cache has room for nothing: the engine's own process says so."""
    run.configure(vllm={"kv_cache_memory_bytes": 100_000})
    run.script("split.py", "--num-shards", "1")
    out = run.script(*INFER, succeeds=False)
    last = out.splitlines()[-1]
    assert "vLLM's engine did not start: ValueError: " in last
    assert "No available memory for the cache blocks" in last
    assert (run.folder / Layout.of(run.config, 1).failure(0)).exists()  # So it starts once.


def test_an_engine_that_was_killed_as_it_started_is_said_so():
    from video_pipeline.engine.vllm.engine import VllmEngine

    engine = object.__new__(VllmEngine)
    engine._causes, engine._processes = None, []
    # vLLM 0.32's words when its process got SIGKILL in load_model, and nothing stood above
    error = RuntimeError(
        "Engine core initialization failed. See root cause above. "
        "Failed core proc(s): {'EngineCore': -9}"
    )
    assert engine._why(error) == (
        "its process EngineCore ended: killed by SIGKILL, perhaps by the kernel for lack of memory"
    )


def hang():
    """A start of vLLM whose process comes late, and hangs."""
    time.sleep(0.3)
    process = multiprocessing.Process(target=time.sleep, args=(600,), name="EngineCore")
    process.start()
    process.join()
    raise RuntimeError(f"Engine core initialization failed: {process.exitcode}")


def test_a_job_that_stops_does_not_wait_for_the_start(tmp_path, monkeypatch, forked_engine, caplog):
    from video_pipeline.engine.vllm import engine as module

    monkeypatch.setattr(module, "note_causes", lambda *_: None)
    monkeypatch.setattr(module, "start_engine", lambda *_: hang())
    engine = object.__new__(module.VllmEngine)
    engine._vllm_config = None

    async def give_up():
        async with asyncio.TaskGroup() as group:
            group.create_task(engine.start(tmp_path))
            await asyncio.sleep(0.1)
            raise UserError("too many errors")

    begin = time.monotonic()
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(give_up())
    assert time.monotonic() - begin < 300
    assert [type(error) for error in caught.value.exceptions] == [UserError]
    assert not module.engine_processes()
    gc.collect()
    assert not caplog.records


# --- one request ----------------------------------------------------------------------------------


@pytest.fixture
def answers():
    """An engine whose requests come to what is put in here, one after the other: an exception, a
    finish reason, or None for no output at all."""
    from video_pipeline.engine.vllm.engine import VllmEngine

    outcomes = []

    async def generate(*args, **kwargs):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            completion = SimpleNamespace(
                text="A cat.", token_ids=[1, 2], finish_reason=outcome, logprobs=None
            )
            yield SimpleNamespace(outputs=[completion], prompt_token_ids=[1], num_cached_tokens=0)

    engine = object.__new__(VllmEngine)
    engine._llm = SimpleNamespace(generate=generate, errored=False)
    engine._sampling_under, engine._lora = {Constraints(): None}, None
    engine._causes, engine._processes, engine._reasoning = None, [], None
    engine._chat_template_kwargs = {}

    def ask(*given):
        outcomes[:] = given
        return asyncio.run(engine.generate("a", {}, Constraints()))

    return ask


def recoverable(cause: Exception) -> Exception:
    from vllm.v1.engine.exceptions import EngineGenerateError

    error = EngineGenerateError()
    error.__cause__ = cause
    return error


def test_what_is_recoverable_is_asked_once_more(answers):
    for first in (recoverable(RuntimeError("a slip")), "error", None):
        assert answers(first, "stop").output_text == "A cat."


def test_what_fails_twice_is_no_ones_final_record(answers):
    for outcome in (recoverable(RuntimeError("a slip")), "error", None):
        with pytest.raises(EngineDead, match="it failed twice with one request: "):
            answers(outcome, outcome)


def test_what_vllm_refuses_is_the_samples(answers):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(RequestRefused, match="too long") as caught:
        answers(VLLMValidationError("too long"))
    assert caught.value.type == "VLLMValidationError"
    # also where its word is a plain ValueError, if it repeats it
    refusal = recoverable(ValueError("no such token"))
    with pytest.raises(RequestRefused, match="no such token") as caught:
        answers(refusal, refusal)
    assert caught.value.type == "ValueError"
