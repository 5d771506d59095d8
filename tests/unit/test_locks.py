"""Locks and leases, between real processes."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import threading

import pytest
from helpers import SCRIPTS, wait_until
from video_pipeline import gpus
from video_pipeline.errors import UserError
from video_pipeline.locks import describe_holder, holder, is_locked, try_lock, waiting_lock

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
    from video_pipeline.locks import try_lock
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


@pytest.mark.parametrize("text", ["", '{"host": "h", "pi'])
def test_a_lock_with_no_name_in_it(tmp_path, text):
    (tmp_path / "a.lock").write_text(text)
    assert describe_holder(tmp_path / "a.lock") == "an unknown process"


CHILD_THAT_OUTLIVES = """
    import subprocess
    from video_pipeline.locks import try_lock
    stream = try_lock(Path("a.lock"), inheritable={inheritable})
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"],
                             stdin=sys.stdin, stdout=subprocess.DEVNULL, close_fds=False)
    print("ready", flush=True)
    sys.stdin.close()
"""


@pytest.mark.parametrize("inheritable", [True, False])
def test_only_an_inheritable_lock_passes_to_children(tmp_path, process, inheritable):
    parent = process(CHILD_THAT_OUTLIVES.format(inheritable=inheritable))
    assert parent.stdout.readline() == "ready\n"
    parent.wait()
    assert is_locked(tmp_path / "a.lock") == inheritable
    parent.stdin.close()  # the grandchild ends with it
    wait_until(lambda: not is_locked(tmp_path / "a.lock"), "the grandchild is gone")
    parent.stdin = None


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


# --- leases ------------------------------------------------------------------------------------

LEASE = """
    import os
    from video_pipeline import gpus
    with gpus.lease({count}) as devices:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(devices)
        print(",".join(devices), flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """The environment of a machine with two GPUs, and nobody else on it."""
    environment = {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    yield environment
    monkeypatch.setattr("tempfile.tempdir", None)


def test_two_jobs_get_different_devices_and_a_third_waits(process, two_gpus, caplog):
    first, second = (process(LEASE.format(count=1)) for _ in range(2))
    given = {child.stdout.readline().strip() for child in (first, second)}
    assert given == {"0", "1"}
    got = []

    def third():
        with gpus.lease(1) as devices:
            got.append((devices, os.environ["CUDA_VISIBLE_DEVICES"]))

    thread = threading.Thread(target=third)
    with caplog.at_level(logging.INFO):
        thread.start()
        wait_until(lambda: "waiting for" in caplog.text, "the third says that it waits")
        assert got == []
        assert str(first.pid) in caplog.text
        first.kill()
        thread.join()
    ((devices, visible),) = got
    assert len(devices) == 1
    assert [visible] == devices
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_all_or_none(process, two_gpus):
    """A job that needs both devices does not sit on one of them."""
    one = process(LEASE.format(count=1))
    held = one.stdout.readline().strip()
    both = process(LEASE.format(count=2))
    free = {"0": "1", "1": "0"}[held]
    lock = gpus._lock_file(free)
    wait_until(lambda: lock.exists() and str(both.pid) in lock.read_text(), "it has tried")
    another = process(LEASE.format(count=1))
    assert another.stdout.readline().strip() == free
    one.kill()
    another.kill()
    assert both.stdout.readline().strip() == "0,1"


def test_too_few_devices(two_gpus):
    with pytest.raises(UserError, match=r"needs 3 GPUs.*only 2: 0, 1"), gpus.lease(3):
        pass


def test_a_lease_ends_with_an_error_too(two_gpus):
    with pytest.raises(KeyError), gpus.lease(2):
        raise KeyError
    with gpus.lease(2) as devices:
        assert devices == ["0", "1"]


def test_ids_and_spaces(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", " GPU-8932f937 ,MIG-7,3,")
    assert gpus.devices() == ["GPU-8932f937", "MIG-7", "3"]


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_hidden_devices_are_none(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.devices() == []


def test_devices_after_a_minus_one_are_hidden(monkeypatch):
    """As CUDA itself reads the list."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,0")
    assert gpus.devices() == ["1"]


def test_without_a_gpu_nothing_is_leased(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    with gpus.lease(4) as devices:
        assert devices == []
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_devices_that_nvidia_smi_lists(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with gpus.lease(1) as devices:
        assert devices == ["0"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_machine_whose_driver_is_broken(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpus.devices() == []


def test_a_cluster_has_leased_already(monkeypatch, two_gpus):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with gpus.lease(1) as devices:
        assert devices == []
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_lock_names_its_holder_as_json(two_gpus):
    with gpus.lease(1) as devices:
        held = json.loads(gpus._lock_file(devices[0]).read_text())
    assert held["pid"] == os.getpid()
    assert re.fullmatch(r"\S+", held["host"])
