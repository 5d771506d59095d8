"""Snakemake without the second of CPU that its imports take: each call is a fork of one process
that has imported it, with arguments, environment, working directory and streams of its own.

What Snakemake reads before that is fixed (its plugins, for example): :data:`FIXED` names the
variables that may change it. A process that has them otherwise gets a ``snakemake`` of its own.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

FIXED = ("PYTHON", "LC_", "LANG", "HOME", "XDG_", "SNAKEMAKE")
"""How the names begin of variables that Python and Snakemake read when they start."""

NO_THREADS = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""A fork lacks the threads that NumPy and pyarrow start when they are imported."""


class WarmSnakemake:
    """The process that has imported Snakemake; it starts with the first call.

    ``environment`` is that of the process, ``hidden`` the folder of modules that it does not see.
    """

    def __init__(self, environment: Mapping[str, str], hidden: Path) -> None:
        self._environment = dict(environment)
        self._hidden = hidden
        self._socket: socket.socket | None = None

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a process with this environment would have imported the same."""
        return _fixed(environment) == _fixed(self._environment)

    def run(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str], path: list[str]
    ) -> tuple[int, str]:
        """Run ``snakemake`` with these arguments, and ``path`` as the PYTHONPATH. Returns the exit
        code, and all that was printed."""
        if self._socket is None:
            self._start()
        call = {"arguments": arguments, "folder": str(folder), "path": path}
        call["environment"] = {**environment, "PYTHONPATH": os.pathsep.join(path)}
        said, its_said = os.pipe()
        ended, its_ended = os.pipe()
        try:
            message = json.dumps(call).encode()
            socket.send_fds(self._socket, [message], [0, its_said, its_said, its_ended])
        finally:
            os.close(its_said)
            os.close(its_ended)
        with open(said, encoding="utf-8", errors="replace") as output, open(ended) as code:
            text = output.read()
            return int(code.read()), text

    def _start(self) -> None:
        self._socket, its_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = its_socket.fileno()
        with its_socket:
            subprocess.Popen(
                [sys.executable, __file__, str(number)],
                pass_fds=[number],
                stdout=subprocess.DEVNULL,  # Python keeps lines back as for a pipe
                env={
                    **self._environment,
                    "PYTHONPATH": str(self._hidden),
                    **NO_THREADS,
                },
            )


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(FIXED)}


def main(number: int) -> None:
    """Import Snakemake, then fork for each call, until the other end of the socket closes. Returns
    in the process of a call, when Snakemake does."""
    import snakemake.cli  # noqa: F401

    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait below
    calls = socket.socket(fileno=number)
    while True:
        message, handles, _, _ = socket.recv_fds(calls, 1 << 20, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            break
        for handle in handles:
            os.close(handle)
    calls.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, ended = handles
    if pid := os.fork():
        _report_end(pid, streams, ended)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(ended)
    for stream, handle in enumerate(streams):
        os.dup2(handle, stream)
        os.close(handle)
    call = json.loads(message)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    # as `python -m` has them
    sys.path[:2] = [call["folder"], *call["path"]]  # instead of this folder, and the hidden modules
    sys.argv = [str(find_spec("snakemake.__main__").origin), *call["arguments"]]
    runpy.run_module("snakemake", run_name="__main__", alter_sys=True)


def _report_end(pid: int, streams: Iterable[int], ended: int) -> NoReturn:
    for handle in streams:
        os.close(handle)
    _, status = os.waitpid(pid, 0)
    os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
