"""Decode processes are forked from one process that has loaded, once, what all of them need.

With a vocabulary of real size, the processor of a model takes 10 to 15 s of CPU and 1 GB of memory
to load. Forked, a decode process starts in a fraction of a second and shares that memory.

A process may only be forked while it has one thread: another one could hold a lock, which nobody
would ever release in the copy. So the fork server is a new program, runs no code of the
user, and looks at its threads before it forks; where there are others, decode processes load
everything themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler, recv_handle, send_handle
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

NICENESS = 10
"""Of the fork server and the decode processes: the engine and the process that feeds it go first.
A nice value of 10 is a tenth of their share of a core that both want (sched(7))."""

START_SECONDS = 600.0
"""It starts in 10 to 30 s; from a slow network file system it may take minutes."""

ANSWER_SECONDS = 60.0
"""How long a fork may take. It takes 0.1 s."""

END_SECONDS = 5.0
"""How long a process that was killed may take to end."""

CUDA = "CUDA_VISIBLE_DEVICES"

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow
    CUDA: "",
}
"""Environment of a process that works on one core and must not start threads. Snakemake sets some
of these to the threads of the job. CUDA's driver starts a thread, and cannot be used after a fork:
the GPUs are hidden until then (to vLLM an empty list is as good as none)."""

HARMLESS = ("cuda", "jemalloc_bg_thd")
"""Threads, by the begin of their name for the kernel, that hold no lock which a decode process
takes: jemalloc sees to its own (``pthread_atfork``), and CUDA's driver refuses to work after a
fork."""

_FORK = multiprocessing.get_context("fork")

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h


class ForkServerDied(Exception):
    """The fork server ended by itself; the text says how."""


class ForkServer:
    """The process that decode processes are forked from. It is replaced when it dies, and takes
    its decode processes with it."""

    def __init__(self, modules: Sequence[str] = (), *, shares: bool = True) -> None:
        """Args:
        modules: what to import at once, while this process still finds out what to load.
        shares: False for processes that must load everything themselves, as those that use CUDA.
        """
        self._modules = modules
        self._changing = threading.Lock()
        self._preloads = shares
        self._stopped = False
        self._spec: Any = None
        self._start()

    def load(self, spec: Any) -> None:
        """Say what the decode processes are for, before the first :meth:`fork`.

        Args:
            spec: crosses to the fork server as a pickle. Its ``preload()`` loads there what all
                processes share, and must start no thread; its ``serve(preloaded, number, pipe)`` is
                the main function of a decode process, whose ``preloaded`` is None where that could
                not be shared.
        """
        self._spec = spec

    def fork(self, number: int) -> Forked:
        """A new decode process, the one of that ``number``. Waits until the fork server has loaded.

        Raises :class:`ForkServerDied`.
        """
        with self._changing:
            self._get_ready()
            ours, theirs = multiprocessing.Pipe()
            try:
                with theirs:
                    self._pipe.send(("fork", number))
                    send_handle(self._pipe, theirs.fileno(), self._process.pid)
                return Forked(self, self._process, self._receive(ANSWER_SECONDS), ours)
            except OSError as error:
                ours.close()
                raise ForkServerDied(f"the process they are forked from is gone: {error}") from None
            except BaseException:
                ours.close()
                raise

    def ask(self, process: subprocess.Popen[bytes], what: str, number: int) -> Any:
        """Have the fork server that was ``process`` answer; None if it is gone."""
        with self._changing:
            if process is self._process:
                with contextlib.suppress(OSError, ForkServerDied):
                    self._pipe.send((what, number))
                    return self._receive(ANSWER_SECONDS)
        return None

    def stop(self) -> None:
        """End it, and the processes that it has forked."""
        self._stopped = True
        self._process.kill()  # at once: whoever waits for it holds the lock
        with self._changing:
            self._end()

    def _start(self) -> None:
        if self._stopped:
            raise ForkServerDied("the job ends")
        self._pipe, theirs = multiprocessing.Pipe()
        modules = self._modules if self._preloads else ()
        devices = os.environ.get(CUDA)
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; "
        with theirs:  # so that its end of the pipe closes when it dies
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c"),
                    f"{program}main({theirs.fileno()}, {list(modules)!r}, {devices!r})",
                ],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
            )
        self._is_ready = False

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _get_ready(self) -> None:
        """Wait until there is one that has loaded."""
        if self._process.poll() is not None:
            self._end()
            self._start()
        while not self._is_ready:
            try:
                # as bytes: to unpickle it imports the engine, which only a process that shares may
                self._pipe.send((ForkingPickler.dumps(self._spec).tobytes(), self._preloads))
                threads = self._receive(START_SECONDS)
                others = [name for name in threads if not name.startswith(HARMLESS)]
                if threads and not others:
                    logger.info("threads of the fork server that do no harm: %s", threads)
                if not others:
                    self._is_ready = True
                    return
                reason = f"it has {len(others)} threads ({', '.join(others)})"
            except (OSError, ForkServerDied) as error:
                reason = str(error)
            could_share, self._preloads = self._preloads, False
            self._end()
            self._start()
            if not could_share:
                raise ForkServerDied(reason)
            logger.warning(
                "decode processes cannot share what they load: %s. Each loads it by itself, which "
                "takes more time and memory",
                reason,
            )

    def _receive(self, seconds: float) -> Any:
        """What it says next. Raises :class:`ForkServerDied`, also after ``seconds``."""
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            code = self._process.returncode
            raise ForkServerDied(f"the process they are forked from ended, code {code}") from None
        raise ForkServerDied(f"the process they are forked from said nothing for {seconds:g} s")


class Forked:
    """A process that was forked.

    Attributes:
        pipe: To the process.
    """

    def __init__(
        self,
        server: ForkServer,
        parent: subprocess.Popen[bytes],
        number: int,
        pipe: Connection,
    ) -> None:
        self._server = server
        self._parent = parent
        self._number = number
        self._code: int | None = None
        self.pipe = pipe

    def kill(self) -> int | None:
        """End it; returns its exit code, as :meth:`wait` does."""
        self._server.ask(self._parent, "kill", self._number)
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll(END_SECONDS):  # until its end closes
                self.pipe.recv_bytes()
        # The pipe is not closed here: another thread may still wait for it, or end it, too.
        return self.wait(END_SECONDS)

    def wait(self, seconds: float) -> int | None:
        """Its exit code (a signal as a negative number) once it has ended; None if it still runs
        after ``seconds``, and if nobody knows any more."""
        until = time.monotonic() + seconds
        while self._code is None:
            self._code = self._server.ask(self._parent, "exit code", self._number)
            if time.monotonic() > until or self._parent.poll() is not None:
                break
            if self._code is None:
                time.sleep(0.01)
        return self._code


def main(handle: int, modules: Sequence[str], devices: str | None) -> None:
    """The fork server: load, then fork until the other end of the pipe ``handle`` closes.
    ``devices``: the GPUs that decode processes see."""
    pipe = Connection(handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the job
    os.nice(NICENESS)
    for name in modules:
        with contextlib.suppress(Exception):  # whoever needs it says so
            importlib.import_module(name)
    with contextlib.suppress(EOFError, OSError):
        pickled, preloads = pipe.recv()
        spec = pickle.loads(pickled) if preloads else None
        preloaded = spec.preload() if preloads else None
        gc.collect()
        gc.freeze()  # or a collection in a decode process would copy all pages
        pipe.send(_threads())

        def serve(number: int, own: Connection) -> None:
            os.environ.pop(CUDA)
            if devices is not None:
                os.environ[CUDA] = devices
            (spec or pickle.loads(pickled)).serve(preloaded, number, own)

        _fork_all(pipe, serve)
    # Without the usual clean-up, which would wait for the decode processes: they die with this one.
    os._exit(0)


def _fork_all(pipe: Connection, serve: Callable[..., None]) -> None:
    processes: dict[int, multiprocessing.process.BaseProcess] = {}
    count = 0
    while True:
        what, given = pipe.recv()
        if what == "fork":
            handle = recv_handle(pipe)
            processes[count] = _FORK.Process(target=_child, args=(serve, given, handle, pipe))
            processes[count].start()
            os.close(handle)
            pipe.send(count)
            count += 1
        elif what == "kill":
            if given in processes:
                processes[given].kill()
            pipe.send(True)
        else:
            code = processes[given].exitcode if given in processes else None
            if code is not None:
                del processes[given]
            pipe.send(code)


def _child(serve: Callable[..., None], number: int, handle: int, pipe: Connection) -> None:
    """A decode process: apart from what it has in common with the others, as if it was new."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe.close()
    # Python's own generator sees to itself (os.register_at_fork)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    with Connection(handle) as own:
        serve(number, own)


def _threads() -> list[str]:
    """The threads of this process beside the first, by their names for the kernel."""
    first = str(os.getpid())
    return [
        (task / "comm").read_text().strip()
        for task in Path("/proc/self/task").iterdir()
        if task.name != first
    ]
