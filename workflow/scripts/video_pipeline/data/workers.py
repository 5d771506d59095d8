"""The decode processes: ``Dataset.__getitem__``, then the engine's own preparation."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from concurrent.futures import TimeoutError as PoolTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from video_pipeline.config import Config
from video_pipeline.data.transport import Parcel, pack, unpack
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import TaskError, UserError, user_frame, where

SAMPLES_PER_WORKER = 2000
"""A worker is replaced after this many samples, so that a codec's leak stays small."""


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
    """

    config: Config
    chunk: Path
    model: str
    preparer: Preparer
    folder: Path


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the engine.

    Attributes:
        request: What the engine's ``generate`` takes.
        num_bytes: Memory it holds.
        seconds: Time its worker spent on it.
        video_seconds: Length of its videos (of the segment, where one is given).
    """

    request: Any
    num_bytes: int
    seconds: float
    video_seconds: float


class DecodePool:
    """A pool of decode processes; a sample that kills or hangs its process costs only itself."""

    def __init__(self, spec: WorkerSpec, num_workers: int, timeout_s: float) -> None:
        self.num_workers = num_workers
        self._timeout_s = timeout_s
        self._pool = ProcessPool(
            max_workers=num_workers,
            max_tasks=SAMPLES_PER_WORKER,
            initializer=_start,
            initargs=(spec,),
            context=multiprocessing.get_context("spawn"),
        )
        # a pool starts its workers with the first task: let them start while the model loads
        self._pool.schedule(_ready)

    async def prepare(self, position: int) -> Prepared:
        """Prepare the sample at ``position`` of the chunk.

        Raises :class:`SampleError` for the sample's own failure and :class:`UserError` if the
        user's code or configuration is at fault.
        """
        try:
            future = self._pool.schedule(_prepare, args=(position,), timeout=self._timeout_s)
            parcel, seconds, video_seconds = await asyncio.wrap_future(future)
        except PoolTimeout:
            raise SampleError(
                "timeout", "TimeoutError", f"not ready after {self._timeout_s:g} s"
            ) from None
        except ProcessExpired as error:
            raise SampleError(
                "crash", "ProcessExpired", f"the decode process died (exit code {error.exitcode})"
            ) from None
        except BrokenProcessPool as error:
            raise UserError(
                f"the decode processes died, not while they had a sample ({error}); the log above "
                "may say why. A dataset or plugin that ends its process does this, and so does "
                "too little memory for data.num_workers processes"
            ) from error
        return Prepared(unpack(parcel), parcel.num_bytes, seconds, video_seconds)

    def stop(self) -> None:
        """Kill the processes and drop what they were doing."""
        self._pool.stop()
        self._pool.join()


class _Worker:
    """The state of a decode process."""

    def __init__(self, spec: WorkerSpec) -> None:
        import torch

        from video_pipeline.chunks import Chunk
        from video_pipeline.data.registry import get_dataset
        from video_pipeline.data.samples import ChunkSamples
        from video_pipeline.plugins import load_plugins
        from video_pipeline.tasks.registry import get_task

        torch.set_num_threads(1)
        config = spec.config
        load_plugins(config.run.plugins)
        task = get_task(config.run.task)(dict(config.task_params))
        self._chunk = Chunk(spec.chunk)
        self._dataset = get_dataset(task.dataset_name)(
            samples=ChunkSamples(self._chunk, config),
            task=task,
            model=spec.model,
            video_field=config.data.video_field,
            vision_kwargs=config.vision.video_kwargs(),
            params=dict(config.task_params),
        )
        self._preparer = spec.preparer
        self._preparer.start()
        self._folder = spec.folder

    def prepare(self, position: int) -> tuple[Parcel, float, float]:
        """The packed request of a sample, the seconds it took, and the length of its videos."""
        started = time.monotonic()
        key = self._chunk[position].key
        item = self._read(position, key)
        video_seconds = _video_seconds(item["llm_input"])
        try:
            request = self._preparer.prepare(item["llm_input"], key)
        except RequestRefused as error:
            raise SampleError("generate", error.type, str(error)) from None
        try:
            parcel = pack(request, self._folder)
        except OSError as error:
            raise UserError(
                f"no room for a prepared sample in shared memory, {self._folder.parent} ({error}): "
                "enlarge it (docker run --shm-size), or lower vision.total_pixels or "
                "data.num_workers"
            ) from None
        return parcel, time.monotonic() - started, video_seconds

    def _read(self, position: int, key: str) -> dict[str, Any]:
        try:
            item = self._dataset[position]
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise SampleError("read", type(error).__name__, _message(error)) from error
        name = type(self._dataset).__name__
        if not (isinstance(item, dict) and isinstance(item.get("llm_input"), dict)):
            raise TaskError(
                f"dataset {name}: __getitem__ must return a dict with '__key', 'raw' and "
                f"'llm_input', which is a dict too; it returned {item!r:.200}"
            )
        if item.get("__key") != key:
            raise TaskError(
                f"dataset {name}: __getitem__ was asked for sample {key!r} and returned "
                f"{item.get('__key')!r}; give back sample['__key'] as it came"
            )
        return item


def _message(error: BaseException) -> str:
    """The error's text; where it has none, the line that raised it."""
    if str(error):
        return str(error)
    return f"{user_frame(error).line} ({where(error)})"


_worker: _Worker | UserError | None = None


def _start(spec: WorkerSpec) -> None:
    """Initializer of a decode process. A failure is kept for the first sample to report."""
    global _worker
    # FFmpeg and torch each take all cores by default; a decode process has one
    os.environ["TORCHCODEC_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        _worker = _Worker(spec)
    except UserError as error:
        _worker = error
    except (Exception, SystemExit) as error:
        _worker = TaskError(
            f"a decode process could not start: {type(error).__name__}: {error} ({where(error)})"
        )


def _ready() -> None:
    """A task that does nothing."""


def _prepare(position: int) -> tuple[Parcel, float, float]:
    if isinstance(_worker, UserError):
        raise _worker
    return _worker.prepare(position)


def _video_seconds(llm_input: dict[str, Any]) -> float:
    """Length of the videos in ``llm_input``, as far as their metadata tell."""
    total = 0.0
    for video in (llm_input.get("multi_modal_data") or {}).get("video", []):
        if isinstance(video, tuple) and video[1].get("fps"):
            total += video[1].get("total_num_frames", 0) / video[1]["fps"]
    return total
