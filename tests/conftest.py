"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from helpers import Run, Splitter, forgetting_plugins, wait_until
from video_pipeline.common.processes import SNAKEMAKE
from video_pipeline.decode import process as decode_process
from video_pipeline.decode.fork_server import Forked, ForkServer
from video_pipeline.decode.process import DecodeProcess


def pytest_configure(config: pytest.Config) -> None:
    # a shell that runs the tests in the background, or nohup, has these ignored, which jobs would
    # inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # a job in this process ends, with its children, the resource tracker of multiprocessing
    config.addinivalue_line("filterwarnings", "ignore:resource_tracker")


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    """A small run in a folder whose name needs quoting. The marks ``two_ranks`` and ``as_users``
    are explained in pyproject.toml."""
    run = Run(tmp_path / "my user's run")
    run.is_users = request.node.get_closest_marker("as_users") is not None
    if request.node.get_closest_marker("two_ranks"):
        run.configure(data={"num_shards": 2})
    return run


@pytest.fixture
def here(run: Run, monkeypatch: pytest.MonkeyPatch, forget_plugins: None) -> Run:
    """A small run in the working directory, for calls of the library in this process. Processes
    that they start get the stand-ins of the run."""
    start, prepare = ForkServer._start, spawn.get_preparation_data

    def start_server(server: ForkServer) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", [*run.stand_ins, *sys.path])
            start(server)

    def prepare_process(name: str) -> dict[str, Any]:
        data = prepare(name)
        return {**data, "sys_path": [*run.stand_ins, *data["sys_path"]]}

    monkeypatch.setattr(ForkServer, "_start", start_server)
    monkeypatch.setattr(spawn, "get_preparation_data", prepare_process)
    monkeypatch.chdir(run.folder)
    return run


@pytest.fixture(autouse=True)
def not_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is no job of a Snakemake, and what a test sets to that end is taken back: the
    next program that runs in this process would look for that Snakemake, and kill the tests."""
    monkeypatch.setenv(SNAKEMAKE, "")
    monkeypatch.delenv(SNAKEMAKE)


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, who writes to an output is not given time to end."""
    monkeypatch.setattr("video_pipeline.run.writers.GRACE_SECONDS", 0.0)


@pytest.fixture
def splitting(here: Run) -> Splitter:
    """Splits the samples of a small run in this process."""
    return Splitter(here)


@pytest.fixture
def forget_plugins():
    """What a test's plugins register is forgotten when it ends."""
    with forgetting_plugins():
        yield


@pytest.fixture
def limit_begins(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Lets the time limit of a question to a decode process begin when the question hangs, as a
    test sees it. Any other may take as long as it needs: this machine may be busy."""

    def when(hangs: Callable[..., Any]) -> None:
        ask, receive, asked = DecodeProcess.ask, decode_process._receive, threading.local()

        def ask_noting(process: DecodeProcess, *question: Any) -> Any:
            asked.question = question
            return ask(process, *question)

        def receive_late(forked: Forked, seconds: float) -> Any:
            wait_until(
                lambda: forked.pipe.poll(0.05) or hangs(*asked.question),
                "a decode process answers, or hangs",
                seconds=600.0,
            )
            return receive(forked, seconds)

        monkeypatch.setattr(DecodeProcess, "ask", ask_noting)
        monkeypatch.setattr(decode_process, "_receive", receive_late)

    return when


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch in this process uses one core, and leaves the others to the engine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forked_engine(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are forked from the process that starts them, which is vLLM's own default. An engine
    of a new process, which the product asks for, would import everything again."""
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    # The engine and this process share two cores: vLLM's own binding would put both on one.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process flushes to the disk and gives another name, in its order: the path that was
    flushed, ``-> path`` of what got a new name."""
    done: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, Path.rename

    def noting_fsync(handle: int) -> None:
        done.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def noting_replace(source: str, target: str) -> None:
        done.append(f"-> {target}")
        replace(source, target)

    def noting_rename(source: Path, target: Path) -> Path:
        done.append(f"-> {target}")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    monkeypatch.setattr(Path, "rename", noting_rename)
    return done
