"""The fork server: decode processes share what was loaded once, and nothing else."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
from video_pipeline.decode import fork_server
from video_pipeline.decode.fork_server import NICENESS, Forked, ForkServer, ForkServerDied

pytestmark = pytest.mark.slow

LONG = 300.0  # seconds; the processes of these tests run when others leave them a core


@dataclass(frozen=True)
class Spec:
    """What a decode process of these tests is: it tells about itself, once for each question.

    Attributes:
        log: File to which each ``preload`` adds a line.
        trouble: What goes wrong while it loads; or ``torch``, which takes more than a second.
    """

    log: Path
    trouble: str = ""

    def preload(self) -> int | str:
        with open(self.log, "a") as stream:
            stream.write(f"{os.getpid()}\n")
        if self.trouble == "thread":
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        elif self.trouble == "hangs":
            time.sleep(600)
        elif self.trouble == "dies":
            os._exit(3)
        elif self.trouble == "environment":
            return os.environ["CUDA_VISIBLE_DEVICES"]
        elif self.trouble == "torch":
            import torch  # noqa: F401
        return os.getpid()

    def serve(self, preloaded: int | None, number: int, pipe: Connection) -> None:
        with contextlib.suppress(EOFError):
            while pipe.recv() != "end":
                chance = random.random(), float(np.random.rand())
                if "torch" in sys.modules:
                    chance += (float(sys.modules["torch"].rand(1)),)
                threads = len(list(Path("/proc/self/task").iterdir()))
                devices = os.environ.get("CUDA_VISIBLE_DEVICES")
                about = (preloaded, os.getpid(), os.getppid(), os.nice(0), chance, threads)
                pipe.send((*about, devices))


class Engine(Spec):
    """One that has a second thread wherever it is imported, as some engines may."""

    def __reduce__(self):
        return _import_engine, (self.log,)


def _import_engine(log: Path) -> Spec:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return Spec(log)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a fork server; all are ended after the test."""
    monkeypatch.setattr(fork_server, "END_SECONDS", LONG)
    servers = []

    def run(trouble: str = "", kind: type[Spec] = Spec) -> ForkServer:
        server = ForkServer()
        servers.append(server)
        server.load(kind(tmp_path / "loaded", trouble))
        return server

    yield run
    for server in servers:
        server.stop()


def ask(process: Forked):
    process.pipe.send("?")
    assert process.pipe.poll(LONG)
    return process.pipe.recv()


def test_what_is_loaded_once_is_there_in_all(start, tmp_path):
    server = start()
    answers = [ask(server.fork(0)) for _ in range(3)]
    (loader,) = {answer[0] for answer in answers}
    assert (tmp_path / "loaded").read_text().split() == [str(loader)]
    assert len({answer[1] for answer in answers} | {loader}) == 4
    assert {answer[2] for answer in answers} == {loader}


def test_processes_go_last_have_one_thread_and_chances_of_their_own(start, tmp_path):
    server = start("torch")
    answers = [ask(server.fork(0)) for _ in range(2)]
    for *_, nice, _, threads, _ in answers:
        assert nice == min(19, os.nice(0) + NICENESS)
        assert threads == 1
    chances = list(zip(answers[0][4], answers[1][4], strict=True))
    assert len(chances) == 3  # of Python, numpy and torch
    for one, other in chances:
        assert one != other


@pytest.mark.parametrize(("trouble", "said"), [("thread", "1 threads"), ("dies", "code 3")])
def test_what_cannot_be_shared_each_process_loads_itself(start, tmp_path, caplog, trouble, said):
    """A process with another thread must not be forked: that may hold a lock."""
    server = start(trouble)
    answers = [ask(server.fork(0)) for _ in range(2)]
    assert [answer[0] for answer in answers] == [None, None]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert said in warning
    assert "Each loads it by itself" in warning


def test_an_engine_that_has_threads_is_imported_in_each_process(start, caplog):
    server = start(kind=Engine)
    assert [ask(server.fork(0))[0] for _ in range(2)] == [None, None]
    assert "1 threads" in caplog.text


def test_processes_may_share_nothing(tmp_path, caplog):
    server = ForkServer(shares=False)
    server.load(Spec(tmp_path / "loaded"))
    assert ask(server.fork(0))[0] is None
    assert not (tmp_path / "loaded").exists()
    assert caplog.text == ""
    server.stop()


def test_gpus_are_hidden_until_the_fork(start, tmp_path, monkeypatch):
    """CUDA's driver does not work after a fork."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
    server = start("environment")
    answer = ask(server.fork(0))
    assert answer[0] == ""
    assert answer[-1] == "GPU-7"


def test_how_a_process_ended(start, tmp_path):
    server = start()
    process = server.fork(0)
    assert process.wait(0) is None
    process.pipe.send("end")
    assert process.wait(LONG) == 0
    killed = server.fork(0)
    assert killed.kill() == -9
    assert killed.wait(0) == -9  # it is known still


def test_processes_end_with_the_server_and_another_server_takes_over(start, tmp_path):
    server = start()
    process = server.fork(0)
    _, pid, ppid, *_ = ask(process)
    orphan = psutil.Process(pid)
    psutil.Process(ppid).kill()
    psutil.wait_procs([orphan], timeout=LONG)
    assert not orphan.is_running()
    assert process.kill() is None  # nobody knows
    _, other, parent, *_ = ask(server.fork(0))
    assert other != pid
    assert parent != ppid


def test_stopping_ends_everything(start, tmp_path):
    server = start()
    _, pid, ppid, *_ = ask(server.fork(0))
    processes = [psutil.Process(pid), psutil.Process(ppid)]
    server.stop()
    assert psutil.wait_procs(processes, timeout=LONG)[1] == []
    with pytest.raises(ForkServerDied, match="the job ends"):
        server.fork(0)


def test_stopping_does_not_wait_until_it_has_loaded(start, tmp_path):
    server = start("hangs")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.fork, 0)
        while not (tmp_path / "loaded").exists():
            time.sleep(0.01)
        server.stop()
        with pytest.raises(ForkServerDied):
            waiting.result(LONG)
