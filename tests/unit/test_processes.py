"""No process outlives its job, however the job ends, and its shared memory goes with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from helpers import SCRIPTS, marked_processes, wait_until
from video_pipeline.common.processes import SNAKEMAKE

# A job with the children a real one has: one started by spawn, one program, one that ignores the
# wish to end and has a session of its own, and a grandchild whose parent is gone.
JOB = """
    import json, multiprocessing, os, subprocess, sys
    from pathlib import Path
    from video_pipeline.common.processes import MARK, job_processes

    STUBBORN = '''
    import signal, subprocess, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    print("up", flush=True)
    signal.pause()
    '''
    ORPHAN = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"

    if __name__ == "__main__":
        import textwrap
        with job_processes() as folder:
            context = multiprocessing.get_context("spawn")
            event = context.Event()
            worker = context.Process(target=event.wait)
            worker.start()
            program = subprocess.Popen(["sleep", "600"])
            stubborn = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(STUBBORN)],
                start_new_session=True, stdout=subprocess.PIPE)
            stubborn.stdout.readline()
            subprocess.run([sys.executable, "-c", ORPHAN])
            (folder / "frames").write_bytes(b"x" * 100)
            semaphore = "/dev/shm/sem." + event._cond._lock._semlock.name[1:]
            print(json.dumps([os.environ[MARK], str(folder), semaphore]), flush=True)
            order = sys.stdin.readline().strip()
            if order == "fail":
                raise RuntimeError("failed on purpose")
            if order == "die":
                os._exit(5)
            if order == "exit":
                sys.exit(6)
        print(os.environ.get(MARK), flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path):
    """A running job: the process, its mark and its folder."""
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
    )
    mark, folder, semaphore = json.loads(process.stdout.readline())
    # spawn brings a resource tracker
    assert len(marked_processes(mark)) >= 5
    assert (Path(folder) / "frames").exists()
    assert Path(semaphore).exists()
    yield process, mark, Path(folder)
    process.kill()
    process.wait()
    assert_gone(mark, Path(folder))
    wait_until(lambda: not Path(semaphore).exists(), "the semaphores are gone")


def assert_gone(mark: str, folder: Path) -> None:
    wait_until(lambda: not marked_processes(mark), "the children are gone")
    wait_until(lambda: not folder.exists(), "the shared memory is gone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_killed_job_leaves_nothing(job, number):
    process, mark, folder = job
    process.send_signal(number)
    assert process.wait() != 0
    assert_gone(mark, folder)


@pytest.mark.parametrize(("order", "code"), [("fail", 1), ("die", 5), ("exit", 6)])
def test_a_job_that_fails_leaves_nothing(job, order, code):
    process, mark, folder = job
    process.stdin.write(f"{order}\n")
    process.stdin.flush()
    assert process.wait() == code
    assert_gone(mark, folder)


def test_a_job_that_ends_well_leaves_nothing_when_the_block_is_over(job):
    process, mark, folder = job
    process.stdin.write("end\n")
    process.stdin.flush()
    assert process.stdout.readline() == "None\n"  # said after the block
    names = [psutil.Process(pid).cmdline() for pid in marked_processes(mark)]
    assert all("resource_tracker" in " ".join(name) for name in names)  # it ends with the job
    assert not folder.exists()
    process.stdin.close()
    assert process.wait() == 0
    assert_gone(mark, folder)


def test_a_ctrl_c_at_the_terminal_does_not_stop_the_watch(job):
    """The terminal sends the signal to the whole process group."""
    process, mark, folder = job
    children = psutil.Process(process.pid).children()
    watches = [child for child in children if "processes.py" in " ".join(child.cmdline())]
    for watch in watches:
        wait_until(lambda watch=watch: ignores(watch, signal.SIGTERM), "the watch has begun")
        watch.send_signal(signal.SIGINT)
        watch.send_signal(signal.SIGTERM)
    assert len(watches) == 1
    process.kill()
    process.wait()
    assert_gone(mark, folder)


def ignores(process: psutil.Process, number: int) -> bool:
    """Whether a process ignores a signal, as the kernel says."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    (ignored,) = re.findall(r"^SigIgn:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(ignored, 16) >> (number - 1) & 1)


def test_two_jobs_do_not_touch_each_other(job, tmp_path):
    _, mark, folder = job
    other = subprocess.run(
        [sys.executable, str(tmp_path / "job.py")],
        input="end\n",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        check=True,
    )
    other_mark, other_folder, _ = json.loads(other.stdout.splitlines()[0])
    assert other_mark != mark
    assert not Path(other_folder).exists()
    assert len(marked_processes(mark)) >= 5
    assert (folder / "frames").exists()


def test_a_job_whose_snakemake_is_gone_before_it_looks_ends(tmp_path):
    script = "import time; from video_pipeline.common.processes import *; exit_with_snakemake(); %s"
    command = [sys.executable, "-c", script % "time.sleep(60)"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = subprocess.run(command, env={**environment, SNAKEMAKE: str(gone.pid)}, check=False)
    assert done.returncode == -signal.SIGKILL
    by_hand = [sys.executable, "-c", script % "time.sleep(1)"]
    subprocess.run(by_hand, env=environment, check=True)
