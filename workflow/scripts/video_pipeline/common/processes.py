"""No process outlives its job: a watch process ends what a job leaves behind.

A job that is killed cannot clean up, and its children live on: decode processes wait for work that
never comes, vLLM's engine process keeps its GPU. So each job starts a small watch process first.
The watch process sees the job end, however it ends, because the kernel closes the pipe between
them. Then it kills every process that carries the job's mark in its environment and removes the
job's shared memory.

A job does not outlive its Snakemake either: a killed Snakemake would leave its jobs running, and a
Snakemake that is asked to end would wait for them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

SNAKEMAKE = "VIDEO_PIPELINE_SNAKEMAKE"
"""Environment variable: process id of the Snakemake that starts the jobs."""

MARK = "VIDEO_PIPELINE_JOB"
"""Environment variable: the mark of a job, which its processes inherit."""

KILL_SECONDS = 30.0
"""How long the watch process tries: a broken driver may hold a process in the kernel for ever."""

LOOK_SECONDS = 1.0
"""How often a job looks whether its Snakemake is still alive."""

_SHARED_MEMORY = Path("/dev/shm")

_TRACKER = "multiprocessing.resource_tracker"


@contextlib.contextmanager
def job_processes() -> Iterator[Path]:
    """Mark the processes that this process starts within the block, and end them after it.

    Yields a folder for the job's shared memory (in ``/dev/shm`` if that exists), which is removed
    with the job. Blocks may be nested.
    """
    mark = uuid.uuid4().hex
    parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="video-pipeline-", dir=parent))
    watch = _WatchProcess(mark, folder)
    outer = os.environ.get(MARK)
    os.environ[MARK] = mark
    # vLLM names its processes with setproctitle, which would write the name over their environment
    # and the mark in it.
    os.environ.setdefault("SPT_NOENV", "1")
    try:
        yield folder
    finally:
        del os.environ[MARK]
        if outer is not None:
            os.environ[MARK] = outer
        watch.end()


class _WatchProcess:
    """The watch process. If it is killed, another one takes its place."""

    def __init__(self, mark: str, folder: Path) -> None:
        self._command = [sys.executable, "-P", __file__, mark, str(folder)]
        self._changing = threading.Lock()
        self._ending = False
        self._process = self._start()
        threading.Thread(target=self._restart, daemon=True).start()

    def end(self) -> None:
        """Let it kill the marked processes, and wait until that is done."""
        with self._changing:
            self._ending = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            # Without the mark, or it would kill itself.
            env={name: value for name, value in os.environ.items() if name != MARK},
            start_new_session=True,  # Ctrl-C at the terminal is for the job.
        )

    def _restart(self) -> None:
        while True:
            self._process.wait()
            with self._changing:
                if self._ending:
                    return
                self._process = self._start()


def tie_jobs_to_this_process() -> None:
    """In Snakemake: let :func:`exit_with_snakemake` end the jobs that start from now on."""
    os.environ[SNAKEMAKE] = str(os.getpid())


def exit_with_snakemake() -> None:
    """In a job: kill this process once the Snakemake that started it is gone, or at once if it is
    gone already. A job that was started by hand is left alone."""
    pid = os.environ.get(SNAKEMAKE)
    if pid is None:
        return
    import psutil

    parents = [parent for parent in psutil.Process().parents() if str(parent.pid) == pid]

    def wait() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for parent in parents:
                while parent.status() != psutil.STATUS_ZOMBIE and parent.is_running():
                    time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


asked_to_end = threading.Event()
"""Set when a signal has stopped the jobs, as :func:`stop_jobs_on_signals` says."""


def stop_jobs_on_signals() -> None:
    """In Snakemake's main thread: stop the jobs on this machine when Snakemake is asked to end."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        earlier = signal.getsignal(signum)

        def stop(signum: int, frame: FrameType | None, earlier: object = earlier) -> None:
            import psutil

            asked_to_end.set()
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.terminate()
            if callable(earlier):
                earlier(signum, frame)

        if earlier is not signal.SIG_IGN:
            signal.signal(signum, stop)


def limit_memory(gigabytes: float | None) -> None:
    """Limit what this process may allocate; None: no limit beside the present one."""
    if gigabytes is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(gigabytes * 1e9)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def how_it_ended(code: int) -> str:
    """An exit code of :mod:`multiprocessing` in words."""
    if code >= 0:
        return f"exit code {code}"
    name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
    hint = ", perhaps by the kernel for lack of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _watch(mark: str, folder: Path) -> None:
    """Wait until the job is gone, then kill the processes with its mark."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    sys.stdin.buffer.read()
    deadline = time.monotonic() + KILL_SECONDS
    while _kill_marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _kill_marked(mark: str) -> bool:
    """Kill the processes that carry ``mark``. Returns whether any was still alive.

    Resource trackers of multiprocessing are left alone: they end by themselves when the processes
    they serve are gone, and remove the semaphores and the shared memory that those left behind.
    """
    import psutil

    any_alive = False
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) != mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if not any(_TRACKER in argument for argument in process.cmdline()):
                process.kill()
                any_alive = True
    return any_alive


if __name__ == "__main__":
    _watch(sys.argv[1], Path(sys.argv[2]))
