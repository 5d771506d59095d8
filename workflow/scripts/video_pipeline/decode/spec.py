"""The work of a decode process, from its start to the end of its pipe."""

from __future__ import annotations

import contextlib
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from video_pipeline.common.faults import is_environment_fault
from video_pipeline.common.processes import limit_memory
from video_pipeline.config import Config
from video_pipeline.decode.errors import SampleError
from video_pipeline.errors import EnvironmentFault, Failure, TaskError, where


class ProcessSpec(ABC):
    """The work of a pool's processes. It is pickled for the fork server. ``folder`` is a folder of
    shared memory, for answers that are too large for a pipe."""

    config: Config
    folder: Path

    def folder_of(self, number: int) -> Path:
        """The folder of the process with this number in the pool."""
        return self.folder / f"worker{number}"

    def decoder_of(self, number: int) -> str:
        """``vision.decoder`` of this process; all but ``cpu`` use the GPU."""
        return "cpu"

    def shared(self) -> Any:
        """Load the objects that all processes share, beside the imports of every dataset."""
        return ()

    @abstractmethod
    def worker(self, shared: Any, number: int) -> Callable[..., Any]:
        """Create, in a process, the function that answers its questions. Answers are pickled for
        the pipe; so are a :class:`SampleError` and a :class:`Failure` that it raises."""

    def received(self, answer: Any) -> Any:
        """Unpack an answer in the process that asked."""
        return answer

    def preload(self) -> Any:
        """Return the result of :meth:`shared`, or the exception that it raises. This starts no
        thread, and loads none of the user's code, which may have threads or open files that two
        processes cannot share."""
        import torch

        import video_pipeline.data.qwen_video  # noqa: F401  (every dataset imports it)

        torch.set_num_threads(1)
        try:
            return self.shared()
        except Exception as error:
            return error

    def serve(self, preloaded: Any, number: int, pipe: Connection) -> None:
        """The main function of a process: say that it is ready, then answer each question, or send
        an exception, until the other end closes. ``preloaded``: the result of :meth:`preload` in
        the fork server; None if the process must load it itself."""
        worker = self._start(preloaded, number)
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                question = pipe.recv()
                try:
                    answer = worker if isinstance(worker, Failure) else worker(*question)
                except (SampleError, Failure) as error:
                    answer = error
                except Exception:
                    answer = RuntimeError(f"in a decode process:\n{traceback.format_exc()}")
                pipe.send(answer)

    def _start(self, preloaded: Any, number: int) -> Callable[..., Any] | Failure:
        """The worker, or the failure to create it, which then is the answer to each question."""
        limit_memory(self.config.data.worker_memory_gb)
        try:
            if preloaded is None:
                preloaded = self.preload()
            if isinstance(preloaded, Exception):
                raise preloaded
            return self.worker(preloaded, number)
        except Failure as error:
            return error
        except (Exception, SystemExit) as error:
            failure = EnvironmentFault if is_environment_fault(error) else TaskError
            return failure(
                f"a decode process could not start: {type(error).__name__}: {error} "
                f"({where(error)})"
            )
