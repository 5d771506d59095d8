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
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "VIDEO_PIPELINE_JOB"

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
    while _kill_marked(mark):
        pass
    shutil.rmtree(folder, ignore_errors=True)


def _kill_marked(mark: str) -> bool:
    """Kill the processes that carry ``mark``; whether there were any."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()
                found.append(process)
    psutil.wait_procs(found, timeout=5)
    return bool(found)


if __name__ == "__main__":
    _watch(sys.argv[1], Path(sys.argv[2]))
