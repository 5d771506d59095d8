"""Prepares samples in decode processes: ``Dataset.__getitem__``, then the engine's own part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

from video_pipeline.common.files import Seal
from video_pipeline.config import Config
from video_pipeline.config.vision import decoder_of
from video_pipeline.decode.errors import SampleError, message_of
from video_pipeline.decode.spec import ProcessSpec
from video_pipeline.decode.transport import pack, unpack
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import EnvironmentFault, Failure, user_code
from video_pipeline.model.prompt import listed_media
from video_pipeline.run.chunks import Chunk
from video_pipeline.run.origin import check_code
from video_pipeline.samples.input import task_sample
from video_pipeline.storage.fetched import NOTHING, Fetched, reading

READER = ("video_pipeline.video.reader",)
"""The modules that a fork server imports for processes that read videos, which takes seconds."""


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the engine.

    Attributes:
        requests: The requests for the engine's ``generate``, by part; a :class:`Parcel` of them on
            the way from the decode process.
        num_bytes: Memory it holds.
        seconds: Time its process spent on it.
        video_seconds: Length of its videos, or of their segment.
        damaged: Whether a video is damaged, though all sampled frames could be decoded.
        used_files: Whether it asked for a file that was fetched ahead.
    """

    requests: Any
    num_bytes: int
    seconds: float
    video_seconds: float
    damaged: bool
    used_files: bool


class ChunkSamples(Sequence[dict[str, Any]]):
    """The samples of a chunk, as datasets see them: the input objects plus ``__key`` and
    ``__video_uri``. Each is read when it is asked for."""

    def __init__(self, chunk: Chunk, config: Config) -> None:
        self._chunk = chunk
        self._config = config

    def __len__(self) -> int:
        return len(self._chunk)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        positions = range(len(self))[index]
        if isinstance(positions, range):
            return [self[position] for position in positions]
        entry = self._chunk[positions]
        return task_sample(entry.key, entry.raw, self._config)


class Shared(NamedTuple):
    """The objects that the decode processes of a job share."""

    preparer: Preparer
    chunk: Chunk


@dataclass(frozen=True)
class WorkerSpec(ProcessSpec):
    """Decode processes that prepare samples for an engine.

    Attributes:
        seal: The seal of the chunk file.
        model: ``model`` of the dataset.
        preparer: The engine's part.
        files: The user's code as split saw it, see
            :func:`video_pipeline.run.origin.check_code`; None if no split saw it.
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
        return decoder_of(self.decoder, number)

    def shared(self) -> Shared:
        self.preparer.start()
        return Shared(self.preparer, Chunk(self.chunk, self.seal))

    def worker(self, shared: Shared, number: int) -> Callable[..., Prepared]:
        return _Worker(self, shared, number).prepare

    def received(self, answer: Prepared) -> Prepared:
        return replace(answer, requests=unpack(answer.requests))


class _Worker:
    """The state of a decode process."""

    def __init__(self, spec: WorkerSpec, shared: Shared, number: int) -> None:
        from video_pipeline.data.choosing import create_dataset
        from video_pipeline.tasks.registry import load_task
        from video_pipeline.video.access import Access, limit_access

        config = spec.config
        limit_access(Access.of(config.data))
        task = load_task(config)
        self._preparer, self._chunk = shared
        samples = ChunkSamples(self._chunk, config)
        self._dataset = create_dataset(config, task, samples, spec.model)
        if spec.files is not None:  # The process may load the code hours after the job began.
            check_code(spec.files, config)
        self._folder = spec.folder_of(number)
        decoder = spec.decoder_of(number)
        if decoder != "cpu":
            from video_pipeline.gpu.leases import hold_lease
            from video_pipeline.video.reader import use_decoder

            hold_lease()
            use_decoder(decoder)

    def prepare(
        self, position: int, parts: frozenset[str], files: Mapping[str, Fetched] = NOTHING
    ) -> Prepared:
        """Prepare ``parts`` of the sample at ``position`` of the chunk, with the fetched files."""
        from video_pipeline.data.base import check_complete
        from video_pipeline.video.errors import noting_damage

        started = time.monotonic()
        key = self._chunk[position].key
        with noting_damage() as damage, reading(files) as fetched:
            read = self._read(position, key)
        llm_inputs = {part: read[part] for part in read if part in parts}
        check_complete(llm_inputs, parts, self._dataset, key)
        with user_code(f"dataset {type(self._dataset).__name__}: llm_input of sample {key!r}"):
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
        seconds = time.monotonic() - started
        return Prepared(
            parcel, parcel.num_bytes, seconds, video_seconds, bool(damage), fetched.used
        )

    def _read(self, position: int, key: str) -> dict[str, dict[str, Any]]:
        """The dataset's ``llm_input`` for a sample, by part."""
        from video_pipeline.data.base import inputs_of

        try:
            item = self._preparer.read(self._dataset, position)
        except Failure:
            raise
        except (Exception, SystemExit) as error:
            raise SampleError("read", type(error).__name__, message_of(error)) from error
        return inputs_of(item, self._dataset, key)


def _video_seconds(llm_input: dict[str, Any]) -> float:
    """Length of the videos in ``llm_input`` whose metadata say it."""
    total = 0.0
    for video in listed_media(llm_input).get("video", ()):
        metadata = video[1] if isinstance(video, tuple) else {}
        if metadata.get("duration") is not None:
            total += metadata["duration"]
        elif metadata.get("fps"):
            total += metadata.get("total_num_frames", 0) / metadata["fps"]
    return total
