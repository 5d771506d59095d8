"""Forks decode processes from one process that has loaded, once, everything that they share.

With a vocabulary of real size, the processor of a model takes 10 to 15 s of CPU and 1 GB of memory
to load. Forked, a decode process starts in a fraction of a second and shares that memory.

A process may only be forked while it has one thread: another thread could hold a lock, which nobody
would ever release in the copy. So the fork server is a new program and runs no code of the user. It
counts its threads before it forks. If there are others, decode processes load everything
themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
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
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from video_pipeline.decode.spec import ProcessSpec

logger = logging.getLogger(__name__)

NICENESS = 10
"""The nice value of the fork server and the decode processes: the engine and the process that feeds
it go first. With 10 a process gets a tenth of their share of a core that both want (sched(7))."""

START_SECONDS = 600.0
"""How long loading may take. It takes 10 to 30 s, or minutes from a slow network file system."""

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
of these to the threads of the job. CUDA's driver starts a thread, and does not work after a fork:
the GPUs are hidden until then (vLLM takes an empty list as if it were not set)."""

HARMLESS = ("cuda", "jemalloc_bg_thd")
"""The start of the kernel's names of threads that hold no lock which a decode process takes.
jemalloc handles its own (``pthread_atfork``), and CUDA's driver refuses to work after a fork."""

_FORK = multiprocessing.get_context("fork")

_PR_SET_PDEATHSIG = 1  # From linux/prctl.h.


class ForkServerDied(Exception):
    """The fork server ended by itself; the text says how."""


class ForkServer:
    """The process that decode processes are forked from. When it dies, its decode processes die
    with it, and another fork server takes its place."""

    def __init__(self, modules: Sequence[str] = (), *, shares: bool = True) -> None:
        """
        Args:
            modules: Names of modules to import at once, before :meth:`load` sets the work.
            shares: False for processes that must load everything themselves, such as with CUDA.
        """
        self._modules = modules
        self._changing = threading.Lock()
        self._preloads = shares
        self._stopped = False
        self._spec: ProcessSpec | None = None
        self._start()

    def load(self, spec: ProcessSpec) -> None:
        """Set the work of the decode processes, before the first :meth:`fork`."""
        self._spec = spec

    def fork(self, number: int) -> Forked:
        """Start the decode process ``number``, after the fork server has loaded. Raises
        :class:`ForkServerDied` if it ended, or does not answer."""
        with self._changing:
            self._get_ready()
            ours, theirs = multiprocessing.Pipe()
            try:
                with theirs:
                    self._pipe.send(("fork", number))
                    send_handle(self._pipe, theirs.fileno(), self._process.pid)
                return Forked(self, self._process, self._receive(ANSWER_SECONDS), ours)
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError):
                    raise ForkServerDied(
                        f"the process they are forked from is gone: {error}"
                    ) from None
                raise

    def ask(self, process: subprocess.Popen[bytes], command: str, ticket: int) -> Any:
        """The fork server's answer about its fork ``ticket``; None if ``process`` is gone."""
        with self._changing:
            if process is self._process:
                with contextlib.suppress(OSError, ForkServerDied):
                    self._pipe.send((command, ticket))
                    return self._receive(ANSWER_SECONDS)
        return None

    def stop(self) -> None:
        """End it and the processes that it has forked."""
        self._stopped = True
        self._process.kill()  # Before the lock: a thread that waits for the process holds it.
        with self._changing:
            self._end()

    def _start(self) -> None:
        if self._stopped:
            raise ForkServerDied("the job ends")
        self._pipe, theirs = multiprocessing.Pipe()
        modules = self._modules if self._preloads else ()
        devices = os.environ.get(CUDA)
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; "
        program += f"main({theirs.fileno()}, {list(modules)!r}, {devices!r})"
        with theirs:  # Closed here, so that its end of the pipe closes when it dies.
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
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
        """Wait until a fork server has loaded."""
        if self._process.poll() is not None:
            self._end()
            self._start()
        while not self._is_ready:
            try:
                # As bytes: unpickling imports the engine, which only a server that shares may do.
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
        """The next message of the fork server. Raises :class:`ForkServerDied` if it ended, or sent
        nothing for ``seconds``."""
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
    """A decode process, at the other end of ``pipe``."""

    def __init__(
        self, server: ForkServer, parent: subprocess.Popen[bytes], ticket: int, pipe: Connection
    ) -> None:
        self.pipe = pipe
        self._server = server
        self._parent = parent
        self._ticket = ticket
        self._code: int | None = None

    def kill(self) -> int | None:
        """End it; returns its exit code, as :meth:`wait` does."""
        self._server.ask(self._parent, "kill", self._ticket)
        with contextlib.suppress(EOFError, OSError):
            while self.pipe.poll(END_SECONDS):  # Until its end of the pipe closes.
                self.pipe.recv_bytes()
        # The pipe is not closed here: another thread may still wait for it, or end it, too.
        return self.wait(END_SECONDS)

    def wait(self, seconds: float) -> int | None:
        """Wait until it has ended, for at most ``seconds``; returns its exit code (a signal as a
        negative number). None if it still runs, or its fork server is gone, which alone knows."""
        until = time.monotonic() + seconds
        while self._code is None:
            self._code = self._server.ask(self._parent, "exit code", self._ticket)
            if time.monotonic() > until or self._parent.poll() is not None:
                break
            if self._code is None:
                time.sleep(0.01)
        return self._code


def main(handle: int, modules: Sequence[str], devices: str | None) -> NoReturn:
    """Run as the fork server: load, then fork until the other end of its pipe closes.

    Args:
        handle: File descriptor of the pipe.
        modules: Names of modules to import at once.
        devices: ``CUDA_VISIBLE_DEVICES`` of the decode processes.
    """
    pipe = Connection(handle)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the job.
    os.nice(NICENESS)
    for name in modules:
        with contextlib.suppress(Exception):  # The process that needs the module reports it.
            importlib.import_module(name)
    with contextlib.suppress(EOFError, OSError):
        pickled, preloads = pipe.recv()
        shared_spec: ProcessSpec | None = pickle.loads(pickled) if preloads else None
        preloaded = shared_spec.preload() if shared_spec is not None else None
        gc.collect()
        gc.freeze()  # A collection in a decode process would copy all pages.
        pipe.send(_other_threads())

        def serve(number: int, own: Connection) -> None:
            os.environ.pop(CUDA)
            if devices is not None:
                os.environ[CUDA] = devices
            spec = shared_spec or pickle.loads(pickled)
            spec.serve(preloaded, number, own)

        _fork_all(pipe, serve)
    # The usual end would wait for the decode processes; so they die with this one.
    os._exit(0)


def _fork_all(pipe: Connection, serve: Callable[[int, Connection], None]) -> NoReturn:
    """Obey the commands of :meth:`ForkServer.fork` and :meth:`ForkServer.ask`, for ever."""
    running: dict[int, multiprocessing.process.BaseProcess] = {}  # By ticket.
    tickets = itertools.count()
    while True:
        command, argument = pipe.recv()  # "fork" has a number, other commands have a ticket.
        if command == "fork":
            handle = recv_handle(pipe)
            process = _FORK.Process(target=_child, args=(serve, argument, handle, pipe))
            process.start()
            os.close(handle)
            ticket = next(tickets)
            running[ticket] = process
            pipe.send(ticket)
        elif command == "kill":
            if argument in running:
                running[argument].kill()
            pipe.send(None)
        else:
            code = running[argument].exitcode if argument in running else None
            if code is not None:
                del running[argument]  # This frees its file descriptor.
            pipe.send(code)


def _child(
    serve: Callable[[int, Connection], None], number: int, handle: int, pipe: Connection
) -> None:
    """Run as a decode process, like a new process except for the memory that it shares."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    pipe.close()
    # Python reseeds its own generator (os.register_at_fork).
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
    with Connection(handle) as own:
        serve(number, own)


def _other_threads() -> list[str]:
    """The kernel's names of the threads of this process, without its first thread."""
    first = str(os.getpid())
    return [
        (task / "comm").read_text().strip()
        for task in Path("/proc/self/task").iterdir()
        if task.name != first
    ]
