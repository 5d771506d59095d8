"""The job's handle of a decode process, which it asks through a pipe, and replaces if it dies."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from typing import Any

from video_pipeline.common.processes import how_it_ended
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import (
    END_SECONDS,
    START_SECONDS,
    Forked,
    ForkServer,
    ForkServerDied,
)
from video_pipeline.decode.spec import ProcessSpec
from video_pipeline.errors import EnvironmentFault, UserError

SAMPLES_PER_PROCESS = 10_000
"""A process is replaced after this many samples, so that a codec's leak stays small."""

BAD_STARTS = 3
"""After this many failed starts in a row the job gives up."""


class ProcessDied(Exception):
    """A decode process ended by itself; the text says how. ``code``: its exit code, if known."""

    def __init__(self, how: str, code: int | None = None) -> None:
        super().__init__(how)
        self.code = code


class DecodeProcess:
    """One decode process at a time, started for its first sample. ``stopped``: whether the job
    ends, so that no other process may take its place."""

    def __init__(
        self, server: ForkServer, spec: ProcessSpec, number: int, timeout_s: float
    ) -> None:
        """``number``: its number in the pool. ``timeout_s``: how long an answer may take."""
        self.stopped = False
        self._server = server
        self._unpack = spec.received
        self._number = number
        self._folder = spec.folder_of(number)
        self._timeout_s = timeout_s
        self._samples = 0
        self._bad_starts = 0
        self._changing = threading.Lock()
        self._process: Forked | None = None

    def ask(self, *question: Any) -> Any:
        """Ask the process; returns its answer after :meth:`ProcessSpec.received`.

        Raises:
            SampleError: The sample could not be prepared, or the process died or hung.
            UserError: The user's code or configuration is at fault.
            EnvironmentFault: The machine is at fault.
        """
        process = self.running()
        try:
            with contextlib.suppress(BrokenPipeError):  # It died just now: _receive says how.
                process.pipe.send(question)
            answer = _receive(process, self._timeout_s)
        except TimeoutError:
            self.end()
            message = f"not ready after {self._timeout_s:g} s"
            raise SampleError("timeout", "TimeoutError", message) from None
        except ProcessDied as error:
            self.end()
            message = f"the decode process died ({error})"
            raise SampleError("crash", "ProcessDied", message) from None
        if isinstance(answer, Exception):
            raise answer
        unpacked = self._unpack(answer)
        self._samples += 1
        if self._samples == SAMPLES_PER_PROCESS:
            self.end()
        return unpacked

    def running(self) -> Forked:
        """The process, ready for a question; it starts if there is none.

        Raises:
            UserError: Several processes in a row ended by themselves before they were ready.
            EnvironmentFault: The system killed several in a row, or could not start them.
        """
        if self._process is not None and self._process.pipe.poll():
            self.end()  # It never sends anything unasked, so it is dead.
        while self._process is None:
            try:
                self._start()
            except (ForkServerDied, ProcessDied, TimeoutError) as error:
                self.end()
                self._bad_starts += 1
                if self._bad_starts < BAD_STARTS:
                    continue
                died = f"a decode process died {BAD_STARTS} times before it had a sample ({error})"
                if isinstance(error, ProcessDied) and error.code != -signal.SIGKILL:
                    raise UserError(
                        f"{died}; the log above may say why. A dataset or plugin that ends its "
                        "process does this"
                    ) from error
                raise EnvironmentFault(
                    f"{died}: there may be too little memory on this machine for data.num_workers "
                    "processes"
                ) from error
        return self._process

    def _start(self) -> None:
        with self._changing:
            if self.stopped:
                raise SampleError("crash", "ProcessDied", "the job ends")
            self._folder.mkdir()
            process = self._process = self._server.fork(self._number)
        self._samples = 0
        _receive(process, START_SECONDS)
        self._bad_starts = 0

    def end(self) -> None:
        """Kill the process, if there is one; the next sample gets another process."""
        with self._changing:
            if self._process is not None:
                self._process.kill()
                self._process = None
            # This removes samples that it was about to hand over.
            shutil.rmtree(self._folder, ignore_errors=True)


def _receive(process: Forked, seconds: float) -> Any:
    """The next message of the process. Raises :class:`ProcessDied` if it ended,
    :class:`TimeoutError` if it sent nothing for ``seconds``."""
    try:
        if process.pipe.poll(seconds):
            return process.pipe.recv()
    except (EOFError, OSError):
        pass
    else:
        raise TimeoutError(f"no sign of life for {seconds:g} s")
    code = process.wait(END_SECONDS)
    if code is None:
        code = process.kill()  # It closed its end of the pipe, but still runs.
    if code is None:
        raise ProcessDied("with the process that it was forked from")
    raise ProcessDied(how_it_ended(code), code)
