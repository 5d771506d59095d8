"""The decode processes: ``Dataset.__getitem__``, then the engine's own preparation."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from video_pipeline.config import Config
from video_pipeline.data.transport import Parcel, pack, unpack
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import TaskError, UserError, place_of, user_frame, where
from video_pipeline.files import Seal
from video_pipeline.origin import check_code

SAMPLES_PER_WORKER = 10_000
"""A worker is replaced after this many samples, so that a codec's leak stays small."""

START_SECONDS = 600.0
"""A process starts in about 6 s; from a slow network file system it may take minutes."""

END_SECONDS = 5.0
"""How long a process that has closed its pipe may take to end."""

NVDEC_PROCESSES = 4
"""Decode processes of a job that use the GPU's decoder with ``vision.decoder: auto``. An H100 has 7
decoders in hardware, and each process takes GPU memory."""

BAD_STARTS = 3
"""So many starts in a row that fail are no accident."""

_SPAWN = multiprocessing.get_context("spawn")


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


@dataclass(frozen=True)
class WorkerSpec:
    """What a decode process needs to start; it crosses to the process as a pickle.

    Attributes:
        config: The configuration.
        chunk: The chunk file.
        model: ``model`` of the dataset.
        preparer: The engine's part.
        folder: Folder of shared memory for the prepared samples.
        seal: What the chunk file must hold, if that is known.
        files: The user's code as split saw it, see :func:`video_pipeline.origin.check_code`.
        decoder: ``vision.decoder``: that of the pool, or of the process it goes to. ``cpu`` unless
            the job has a GPU.
    """

    config: Config
    chunk: Path
    model: str
    preparer: Preparer
    folder: Path
    seal: Seal | None = None
    files: dict[str, str | None] | None = None
    decoder: str = "cpu"

    def of_process(self, number: int) -> WorkerSpec:
        """What the process of that number in the pool needs: a folder of its own, and with ``auto``
        only the first few use the GPU's decoder."""
        is_spared = self.decoder == "auto" and number >= NVDEC_PROCESSES
        decoder = "cpu" if is_spared else self.decoder
        return replace(self, folder=self.folder / f"worker{number}", decoder=decoder)


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

    def __init__(self, spec: WorkerSpec, num_workers: int, timeout_s: float) -> None:
        self._processes = [_Process(spec, number, timeout_s) for number in range(num_workers)]
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
        self._idle: asyncio.Queue[_Process] = asyncio.Queue()
        for process in self._processes:
            self._idle.put_nowait(process)

    async def prepare(self, position: int, parts: Collection[str]) -> Prepared:
        """Prepare ``parts`` of the sample at ``position`` of the chunk.

        Raises :class:`SampleError` for the sample's own failure and :class:`UserError` if the
        user's code or configuration is at fault.
        """
        process = await self._idle.get()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._threads, process.prepare, position, frozenset(parts)
            )
        finally:
            self._idle.put_nowait(process)

    def stop(self) -> None:
        """Kill the processes and drop what they were doing."""
        for process in self._processes:
            process.stop()
        self._threads.shutdown()


class ProcessDied(Exception):
    """A decode process ended by itself; the text says how."""


class _Process:
    """One decode process at a time, and its pipe. It is started ahead of its first sample."""

    def __init__(self, spec: WorkerSpec, number: int, timeout_s: float) -> None:
        self._spec = spec.of_process(number)
        self._folder = self._spec.folder
        self._timeout_s = timeout_s
        self._bad_starts = 0
        self._stopped = False
        self._changing = threading.Lock()
        self._start()

    def prepare(self, position: int, parts: frozenset[str]) -> Prepared:
        """Have the process prepare a sample; errors as in :meth:`DecodePool.prepare`."""
        self._wait_until_up()
        try:
            with contextlib.suppress(BrokenPipeError):  # it died just now: _receive says how
                self._pipe.send((position, parts))
            result = self._receive(self._timeout_s)
        except TimeoutError:
            self._replace()
            raise SampleError(
                "timeout", "TimeoutError", f"not ready after {self._timeout_s:g} s"
            ) from None
        except ProcessDied as error:
            self._replace()
            raise SampleError(
                "crash", "ProcessDied", f"the decode process died ({error})"
            ) from None
        if isinstance(result, Exception):
            raise result
        parcel, *figures = result
        prepared = Prepared(unpack(parcel), parcel.num_bytes, *figures)
        self._samples += 1
        if self._samples == SAMPLES_PER_WORKER:
            self._replace()
        return prepared

    def stop(self) -> None:
        """Kill the process."""
        with self._changing:
            self._stopped = True
            self._kill()

    def _start(self) -> None:
        self._samples = 0
        self._is_up = False
        self._folder.mkdir()
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(self._spec, theirs))
        self._process.start()
        theirs.close()  # so that its end of the pipe closes when it dies

    def _replace(self) -> None:
        """Put a new process in the place of this one."""
        with self._changing:
            self._kill()
            if not self._stopped:
                self._start()

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()
        shutil.rmtree(self._folder, ignore_errors=True)  # what it was about to hand over

    def _wait_until_up(self) -> None:
        """Wait until the process is ready for a sample; one that is dead is replaced."""
        while not (self._is_up and self._process.is_alive()):
            try:
                if not self._is_up:
                    self._receive(START_SECONDS)
                    self._is_up = True
                    self._bad_starts = 0
                    return
                self._replace()
            except (ProcessDied, TimeoutError) as error:
                self._bad_starts += 1
                if self._bad_starts >= BAD_STARTS:
                    raise UserError(
                        f"a decode process died {BAD_STARTS} times before it had a sample "
                        f"({error}); the log above may say why. A dataset or plugin that ends its "
                        "process does this, and so does too little memory for data.num_workers "
                        "processes"
                    ) from error
                self._replace()

    def _receive(self, seconds: float) -> Any:
        """What the process sends next. Raises :class:`ProcessDied`, and :class:`TimeoutError`
        after ``seconds``."""
        if not wait([self._pipe, self._process.sentinel], seconds):
            raise TimeoutError(f"no sign of life for {seconds:g} s")
        try:
            if self._pipe.poll():
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        self._process.join(END_SECONDS)
        self._process.kill()  # it closed its end of the pipe and lives on
        self._process.join()
        raise ProcessDied(_how_it_ended(self._process.exitcode))


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
    hint = ", perhaps by the kernel for want of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


class _Worker:
    """The state of a decode process."""

    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from video_pipeline.chunks import Chunk
        from video_pipeline.data.registry import create_dataset
        from video_pipeline.data.samples import ChunkSamples
        from video_pipeline.gpus import hold_lease
        from video_pipeline.tasks.registry import load_task
        from video_pipeline.video.access import Access, limit_access
        from video_pipeline.video.reader import use_decoder

        torch.set_num_threads(1)
        config = spec.config
        limit_access(Access.of(config.data))
        task = load_task(config)
        self._chunk = Chunk(spec.chunk, spec.seal)
        self._dataset = create_dataset(config, task, ChunkSamples(self._chunk, config), spec.model)
        if spec.files is not None:  # it is loaded anew, maybe hours after the job began
            check_code(spec.files, config)
        self._preparer = spec.preparer
        self._preparer.start()
        self._folder = spec.folder
        if spec.decoder != "cpu":
            hold_lease()
            use_decoder(spec.decoder)

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
            raise UserError(
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
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise SampleError("read", type(error).__name__, _message(error)) from error
        return inputs_of(item, self._dataset, key)


_SLIPS = (LookupError, TypeError, AttributeError, NameError)
"""Nobody raises these to say what is wrong with a sample."""


def _message(error: BaseException) -> str:
    """The error's text, with the user's line if it looks like a slip there; where it has none, the
    line that raised it."""
    if isinstance(error, MemoryError):
        return "not enough memory; the limit of a decode process is data.worker_memory_gb"
    if str(error):
        return f"{error}{place_of(error)}" if isinstance(error, _SLIPS) else str(error)
    return f"{user_frame(error).line} ({where(error)})"


def _serve(spec: WorkerSpec, pipe: Connection) -> None:
    """The main function of a decode process: say that it is up, then answer each position with a
    parcel or an exception, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C at the terminal is for the job
    # FFmpeg and torch each take all cores by default; a decode process has one
    os.environ["TORCHCODEC_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    worker = _start(spec)
    pipe.send(None)
    with contextlib.suppress(EOFError):
        while True:
            asked = pipe.recv()
            try:
                result = worker if isinstance(worker, UserError) else worker.prepare(*asked)
            except (SampleError, UserError) as error:
                result = error
            except Exception:
                result = RuntimeError(f"in a decode process:\n{traceback.format_exc()}")
            pipe.send(result)


def _start(spec: WorkerSpec) -> _Worker | UserError:
    """The worker, or why there is none, which the first sample reports."""
    if spec.config.data.worker_memory_gb is not None:
        most = int(spec.config.data.worker_memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    try:
        return _Worker(spec)
    except UserError as error:
        return error
    except (Exception, SystemExit) as error:
        return TaskError(
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
