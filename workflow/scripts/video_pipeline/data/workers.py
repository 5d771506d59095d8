"""The decode processes: they may die or hang, and cost the sample in their hands alone.

A pool of them serves what its :class:`ProcessSpec` says: to prepare samples
(:class:`WorkerSpec`: ``Dataset.__getitem__``, then the engine's own preparation), or to find out
which samples a line of the input stands for (:mod:`video_pipeline.data.expanding`).
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import resource
import shutil
import signal
import threading
import time
import traceback
from abc import abstractmethod
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from video_pipeline.chunks import Chunk
from video_pipeline.config import Config
from video_pipeline.data.fork_server import (
    END_SECONDS,
    START_SECONDS,
    Forked,
    ForkServer,
    ForkServerDied,
)
from video_pipeline.data.transport import Parcel, pack, unpack
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import (
    EnvironmentFault,
    Failure,
    TaskError,
    UserError,
    place_of,
    user_frame,
    where,
)
from video_pipeline.faults import is_environment_fault
from video_pipeline.files import Seal
from video_pipeline.origin import check_code
from video_pipeline.processes import how_it_ended

SAMPLES_PER_WORKER = 10_000
"""A worker is replaced after this many samples, so that a codec's leak stays small."""

READER = ("video_pipeline.video.reader",)
"""What a fork server imports for decode processes that read videos: it takes seconds."""

NVDEC_PROCESSES = 4
"""Decode processes of a job that use the GPU's decoder with ``vision.decoder: auto``. An H100 has 7
decoders in hardware, and each process takes GPU memory."""

BAD_STARTS = 3
"""So many starts in a row that fail are no accident."""


class SampleError(Exception):
    """A sample that could not be prepared.

    Attributes:
        stage: ``read``, ``timeout``, ``crash`` or ``generate``, as in the output.
        type: Name of the exception.
    """

    def __init__(self, stage: str, type: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.type = type

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleError, (self.stage, self.type, str(self))

    def as_record(self) -> dict[str, str]:
        """The ``__error`` of the sample's record."""
        return {"stage": self.stage, "type": self.type, "message": str(self)}


class ProcessSpec:
    """What the processes of a pool are for; it crosses to the fork server as a pickle.

    Attributes:
        config: The configuration.
        folder: Folder of shared memory, for what is too large for a pipe.
    """

    config: Config
    folder: Path

    def folder_of(self, number: int) -> Path:
        """Folder of the process of that number in the pool."""
        return self.folder / f"worker{number}"

    def decoder_of(self, number: int) -> str:
        """``vision.decoder`` of that process; all but ``cpu`` use the GPU."""
        return "cpu"

    def shared(self) -> Any:
        """What all processes share beside what every dataset imports."""
        return ()

    @abstractmethod
    def worker(self, shared: Any, number: int) -> Callable[..., Any]:
        """In a process: what answers its questions. An answer crosses the pipe as a pickle; so does
        a :class:`SampleError`, or a :class:`Failure`, that is raised in its place."""

    def received(self, answer: Any) -> Any:
        """In the process that asked: what it makes of an answer."""
        return answer

    def preload(self) -> Any:
        """Load what all processes share; an exception if that fails. Nothing of it is the user's
        code, which may keep threads or open files that two processes cannot share."""
        import torch

        import video_pipeline.data.qwen_video  # noqa: F401  (what all datasets import)

        torch.set_num_threads(1)
        try:
            return self.shared()
        except Exception as error:
            return error

    def serve(self, preloaded: Any, number: int, pipe: Connection) -> None:
        """The main function of a process: say that it is up, then answer each question, or send an
        exception, until the other end closes."""
        worker = _start(self, preloaded, number)
        pipe.send(None)
        with contextlib.suppress(EOFError):
            while True:
                asked = pipe.recv()
                try:
                    result = worker if isinstance(worker, Failure) else worker(*asked)
                except (SampleError, Failure) as error:
                    result = error
                except Exception:
                    result = RuntimeError(f"in a decode process:\n{traceback.format_exc()}")
                pipe.send(result)


@dataclass(frozen=True)
class WorkerSpec(ProcessSpec):
    """Decode processes that prepare samples for an engine.

    Attributes:
        config: The configuration.
        chunk: The chunk file.
        seal: What the chunk file must hold.
        model: ``model`` of the dataset.
        preparer: The engine's part.
        folder: Folder of shared memory for the prepared samples.
        files: The user's code as split saw it, see :func:`video_pipeline.origin.check_code`; None
            if no split saw it.
        decoder: ``vision.decoder``; ``cpu`` unless the job has a GPU.
    """

    config: Config
    chunk: Path
    seal: Seal
    model: str
    preparer: Preparer
    folder: Path
    files: dict[str, str | None] | None = None
    decoder: str = "cpu"

    def decoder_of(self, number: int) -> str:
        """What that process decodes with: with ``auto`` only the first few use the GPU's."""
        return "cpu" if self.decoder == "auto" and number >= NVDEC_PROCESSES else self.decoder

    def shared(self) -> Preloaded:
        self.preparer.start()
        return Preloaded(self.preparer, Chunk(self.chunk, self.seal))

    def worker(self, shared: Preloaded, number: int) -> Callable[..., Any]:
        return _Worker(self, shared, number).prepare

    def received(self, answer: tuple[Parcel, float, float, bool]) -> Prepared:
        parcel, *figures = answer
        return Prepared(unpack(parcel), parcel.num_bytes, *figures)


@dataclass(frozen=True)
class Preloaded:
    """What the decode processes share."""

    preparer: Preparer
    chunk: Chunk


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the engine.

    Attributes:
        requests: What the engine's ``generate`` takes, by part.
        num_bytes: Memory it holds.
        seconds: Time its worker spent on it.
        video_seconds: Length of its videos (of the segment, where one is given).
        damaged: Whether a video is damaged, though the frames that were wanted came out.
    """

    requests: dict[str, Any]
    num_bytes: int
    seconds: float
    video_seconds: float
    damaged: bool


class DecodePool:
    """Decode processes, each at the end of a pipe of its own: one that dies, hangs or is killed
    takes nothing with it but the sample in its hands, and is replaced.

    (Pools that share a queue between processes cannot promise that: a process killed while it holds
    the queue's lock stops all others.)
    """

    def __init__(
        self, server: ForkServer, spec: ProcessSpec, num_workers: int, timeout_s: float
    ) -> None:
        """``server``: where its processes come from, all for ``spec``; it ends with the pool.
        Those that use the GPU come from another one, in which nothing has touched CUDA.
        ``timeout_s``: how long one answer may take."""
        on_gpu = [spec.decoder_of(number) != "cpu" for number in range(num_workers)]
        clean = ForkServer(shares=False) if any(on_gpu) else server
        self._servers = {server, clean}
        for each in self._servers:
            each.load(spec)
        self._processes = [
            _Process(clean if uses_gpu else server, spec, number, timeout_s)
            for number, uses_gpu in enumerate(on_gpu)
        ]
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        # the last one that was used comes first: no more processes start than have work
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in reversed(self._processes):
            self._idle.put(process)

    def submit(self, *asked: Any) -> Future[Any]:
        """Ask the next process that is idle. The future holds what the spec's ``received`` made of
        the answer; errors as in :meth:`prepare`."""
        return self._threads.submit(self._ask, asked)

    def _ask(self, asked: tuple[Any, ...]) -> Any:
        process = self._idle.get()  # there is one for each thread
        try:
            return process.ask(*asked)
        finally:
            self._idle.put(process)

    async def prepare(self, position: int, parts: Collection[str]) -> Prepared:
        """Prepare ``parts`` of the sample at ``position`` of the chunk.

        Raises :class:`SampleError` for the sample's own failure and :class:`UserError` if the
        user's code or configuration is at fault.
        """
        return await asyncio.wrap_future(self.submit(position, frozenset(parts)))

    def stop(self) -> None:
        """Kill the processes and drop what they were doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.stopped = True
        for server in self._servers:
            server.stop()
        for process in self._processes:
            process.end()
        self._threads.shutdown()


class ProcessDied(Exception):
    """A decode process ended by itself; the text says how.

    Attributes:
        code: Its exit code, where that is known.
    """

    def __init__(self, how: str, code: int | None = None) -> None:
        super().__init__(how)
        self.code = code


class _Process:
    """One decode process at a time, started for its first sample, and its pipe.

    Attributes:
        stopped: Whether no other may take its place.
    """

    def __init__(
        self, server: ForkServer, spec: ProcessSpec, number: int, timeout_s: float
    ) -> None:
        self._server = server
        self._received = spec.received
        self._number = number
        self._folder = spec.folder_of(number)
        self._timeout_s = timeout_s
        self._bad_starts = 0
        self.stopped = False
        self._changing = threading.Lock()
        self._process: Forked | None = None

    def ask(self, *asked: Any) -> Any:
        """Have the process answer; errors as in :meth:`DecodePool.prepare`."""
        process = self._running()
        try:
            with contextlib.suppress(BrokenPipeError):  # it died just now: _receive says how
                process.pipe.send(asked)
            result = _receive(process, self._timeout_s)
        except TimeoutError:
            self.end()
            raise SampleError(
                "timeout", "TimeoutError", f"not ready after {self._timeout_s:g} s"
            ) from None
        except ProcessDied as error:
            self.end()
            raise SampleError(
                "crash", "ProcessDied", f"the decode process died ({error})"
            ) from None
        if isinstance(result, Exception):
            raise result
        received = self._received(result)
        self._samples += 1
        if self._samples == SAMPLES_PER_WORKER:
            self.end()
        return received

    def _running(self) -> Forked:
        """The process, ready for a sample."""
        if self._process is not None and self._process.pipe.poll():
            self.end()  # it says nothing unasked: it is dead
        while self._process is None:
            try:
                self._start()
            except (ForkServerDied, ProcessDied, TimeoutError) as error:
                self.end()
                self._bad_starts += 1
                if self._bad_starts >= BAD_STARTS:
                    died = f"a decode process died {BAD_STARTS} times before it had a sample"
                    if isinstance(error, ProcessDied) and error.code != -signal.SIGKILL:
                        raise UserError(
                            f"{died} ({error}); the log above may say why. A dataset or plugin "
                            "that ends its process does this"
                        ) from error
                    raise EnvironmentFault(
                        f"{died} ({error}): there may be too little memory on this machine for "
                        "data.num_workers processes"
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
        """Kill the process, if there is one; the next sample gets another."""
        with self._changing:
            if self._process is not None:
                self._process.kill()
                self._process = None
            shutil.rmtree(self._folder, ignore_errors=True)  # what it was about to hand over


def _receive(process: Forked, seconds: float) -> Any:
    """What the process sends next. Raises :class:`ProcessDied`, and :class:`TimeoutError`
    after ``seconds``."""
    try:
        if not process.pipe.poll(seconds):
            raise TimeoutError(f"no sign of life for {seconds:g} s")
        return process.pipe.recv()
    except TimeoutError:
        raise
    except (EOFError, OSError):
        pass
    code = process.wait(END_SECONDS)
    if code is None:
        code = process.kill()  # it closed its end of the pipe and lives on
    if code is None:
        raise ProcessDied("with the process that it was forked from")
    raise ProcessDied(how_it_ended(code), code)


class _Worker:
    """The state of a decode process."""

    def __init__(self, spec: WorkerSpec, preloaded: Preloaded, number: int) -> None:
        from video_pipeline.data.registry import create_dataset
        from video_pipeline.data.samples import ChunkSamples
        from video_pipeline.tasks.registry import load_task
        from video_pipeline.video.access import Access, limit_access

        config = spec.config
        limit_access(Access.of(config.data))
        task = load_task(config)
        self._chunk = preloaded.chunk
        samples = ChunkSamples(self._chunk, config)
        self._dataset = create_dataset(config, task, samples, spec.model)
        if spec.files is not None:  # it is loaded anew, maybe hours after the job began
            check_code(spec.files, config)
        self._preparer = preloaded.preparer
        self._folder = spec.folder_of(number)
        decoder = spec.decoder_of(number)
        if decoder != "cpu":
            from video_pipeline.gpus import hold_lease
            from video_pipeline.video.reader import use_decoder

            hold_lease()
            use_decoder(decoder)

    def prepare(self, position: int, parts: frozenset[str]) -> tuple[Parcel, float, float, bool]:
        """The packed requests of a sample, the seconds it took, the length of its videos, and
        whether one of them is damaged."""
        from video_pipeline.data.base import check_complete
        from video_pipeline.video.errors import noting_damage

        started = time.monotonic()
        key = self._chunk[position].key
        with noting_damage() as damage:
            read = self._read(position, key)
        llm_inputs = {part: read[part] for part in read if part in parts}
        check_complete(llm_inputs, parts, self._dataset, key)
        video_seconds = max(map(_video_seconds, llm_inputs.values()))
        try:
            requests = self._preparer.prepare(llm_inputs, key)
        except RequestRefused as error:
            raise SampleError("generate", error.type, str(error)) from None
        try:
            parcel = pack(requests, self._folder)
        except OSError as error:
            raise EnvironmentFault(
                f"no room for a prepared sample in shared memory, {self._folder} ({error}): "
                "enlarge it (docker run --shm-size), or lower vision.total_pixels or "
                "data.num_workers"
            ) from None
        return parcel, time.monotonic() - started, video_seconds, bool(damage)

    def _read(self, position: int, key: str) -> dict[str, dict[str, Any]]:
        """What the dataset made of a sample: its ``llm_input`` by part."""
        from video_pipeline.data.base import inputs_of

        try:
            item = self._preparer.read(self._dataset, position)
        except Failure:
            raise
        except (Exception, SystemExit) as error:
            raise SampleError("read", type(error).__name__, message_of(error)) from error
        return inputs_of(item, self._dataset, key)


_SLIPS = (LookupError, TypeError, AttributeError, NameError)
"""Nobody raises these to say what is wrong with a sample."""


def message_of(error: BaseException) -> str:
    """The error's text, with the user's line if it looks like a slip there; where it has none, the
    line that raised it."""
    if isinstance(error, MemoryError):
        return "not enough memory; the limit of a decode process is data.worker_memory_gb"
    if str(error):
        return f"{error}{place_of(error)}" if isinstance(error, _SLIPS) else str(error)
    return f"{user_frame(error).line} ({where(error)})"


def _start(spec: ProcessSpec, preloaded: Any, number: int) -> Callable[..., Any] | Failure:
    """The worker, or why there is none, which the first sample reports."""
    if spec.config.data.worker_memory_gb is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = int(spec.config.data.worker_memory_gb * 1e9)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        if preloaded is None:
            preloaded = spec.preload()
        if isinstance(preloaded, Exception):
            raise preloaded
        return spec.worker(preloaded, number)
    except Failure as error:
        return error
    except (Exception, SystemExit) as error:
        failure = EnvironmentFault if is_environment_fault(error) else TaskError
        return failure(
            f"a decode process could not start: {type(error).__name__}: {error} ({where(error)})"
        )


def _video_seconds(llm_input: dict[str, Any]) -> float:
    """Length of the videos in ``llm_input``, as far as their metadata tell."""
    total = 0.0
    for video in (llm_input.get("multi_modal_data") or {}).get("video", []):
        metadata = video[1] if isinstance(video, tuple) else {}
        if metadata.get("duration") is not None:
            total += metadata["duration"]
        elif metadata.get("fps"):
            total += metadata.get("total_num_frames", 0) / metadata["fps"]
    return total
