"""Locks, between real processes."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from helpers import SCRIPTS, wait_until
from video_pipeline.common import locks
from video_pipeline.common.locks import (
    describe_holder,
    holder,
    is_locked,
    take_output,
    try_lock,
    waiting_lock,
)
from video_pipeline.errors import UserError

logger = logging.getLogger(__name__)


@pytest.fixture
def process(tmp_path):
    """Starts Python processes that say ``ready`` and live until they are told to end."""
    started = []

    def start(code: str, **environment: str) -> subprocess.Popen[str]:
        code = "import sys\nfrom pathlib import Path\n" + textwrap.dedent(code)
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(SCRIPTS), **environment},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


HOLD = """
    from video_pipeline.common.locks import try_lock
    stream = try_lock(Path("a.lock"))
    print("ready" if stream else "taken", flush=True)
    sys.stdin.read()
"""


def test_one_process_holds_a_lock_until_it_ends(tmp_path, process):
    path = tmp_path / "a.lock"
    assert not is_locked(path)
    child = process(HOLD)
    assert child.stdout.readline() == "ready\n"
    assert try_lock(path) is None
    assert is_locked(path)
    assert describe_holder(path) == f"host {holder()['host']}, process {child.pid}"
    child.kill()
    child.wait()
    assert not is_locked(path)
    with try_lock(path) as stream:
        assert stream is not None
        assert str(os.getpid()) in describe_holder(path)


def test_looking_does_not_take_the_lock(tmp_path, process):
    path = tmp_path / "a.lock"
    try_lock(path).close()
    assert not is_locked(path)
    assert process(HOLD).stdout.readline() == "ready\n"


def test_the_job_of_a_cluster_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with try_lock(tmp_path / "a.lock"):
        assert describe_holder(tmp_path / "a.lock").endswith(", job 4711")


@pytest.mark.parametrize("text", ["", '{"host": "h", "pi', "[]", "7", '{"host": "h"}'])
def test_a_lock_with_no_name_in_it(tmp_path, text):
    (tmp_path / "a.lock").write_text(text)
    assert describe_holder(tmp_path / "a.lock") == "an unknown process"


def test_a_second_holder_waits_and_says_for_whom(tmp_path, process, caplog):
    child = process(HOLD)
    assert child.stdout.readline() == "ready\n"
    got = []

    def second():
        with waiting_lock(tmp_path / "a.lock", logger) as waited:
            got.append(waited)

    thread = threading.Thread(target=second)
    with caplog.at_level(logging.WARNING):
        thread.start()
        wait_until(lambda: f"process {child.pid}" in caplog.text, "it says for whom it waits")
        assert got == []
        child.kill()
        thread.join()
    assert got == [True]


def test_the_first_holder_does_not_wait(tmp_path):
    with waiting_lock(tmp_path / "a.lock", logger) as waited:
        assert waited is False
    assert not is_locked(tmp_path / "a.lock")


def test_an_output_where_nothing_can_be_written():
    """Linux makes no folders in /proc, not even for root."""
    output = Path("/proc/none/out.jsonl")
    with pytest.raises(UserError, match=r"none/out\.jsonl cannot be written: .*another output"):
        take_output(output.with_name("lock"), output)


def test_a_look_at_the_lock_stops_no_run(tmp_path, monkeypatch):
    """`watch` holds it for a moment."""
    lock, output = tmp_path / "lock", tmp_path / "out.jsonl"
    lock.touch()
    look = open(lock, encoding="utf-8")
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda _: look.close())
    take_output(lock, output).close()
