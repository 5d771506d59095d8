"""No process outlives its job: a watch that ends what a job leaves behind.

A job that is killed cannot clean up, and its children live on: decode processes wait for work that
never comes, vLLM's engine process keeps its GPU. So each job starts a small watch process first.
The watch sees the job end, however it ends, because the kernel closes the pipe between them; then
it kills every process that carries the job's mark in its environment and removes the job's shared
memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "VIDEO_PIPELINE_JOB"

KILL_SECONDS = 30.0
"""A process that a broken driver holds in the kernel cannot be killed: give up after this."""

_SHARED_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def job_processes() -> Iterator[Path]:
    """Within the block every process this one starts is marked, and is gone after it.

    Yields a folder for the job's shared memory (in ``/dev/shm`` where that exists), which goes
    with the job too.
    """
    mark = uuid.uuid4().hex
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="video-pipeline-", dir=parent))
    watch = subprocess.Popen(
        [sys.executable, "-P", __file__, mark, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # a Ctrl-C at the terminal is not for the watch
    )
    os.environ[MARK] = mark
    try:
        yield folder
    finally:
        del os.environ[MARK]
        watch.stdin.close()
        watch.wait()


def _watch(mark: str, folder: Path) -> None:
    """Wait until the job is gone, then end what carries its mark."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.stdin.buffer.read()
    deadline = time.monotonic() + KILL_SECONDS
    while _kill_marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _kill_marked(mark: str) -> bool:
    """Kill the processes that carry ``mark``; whether any was still alive."""
    import psutil

    found = False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                found = True
    return found


if __name__ == "__main__":
    _watch(sys.argv[1], Path(sys.argv[2]))
