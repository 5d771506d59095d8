"""Asks ``Dataset.expand`` which samples a line stands for, in processes that may die."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config
from video_pipeline.decode.errors import SampleError, message_of
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.spec import ProcessSpec
from video_pipeline.errors import Failure, explain, text_of
from video_pipeline.samples.input import InputSample, task_sample
from video_pipeline.samples.where import HEADER_FIELDS, Where

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset

logger = logging.getLogger(__name__)

PROCESSES_PER_CORE = 4
"""Several, because they mostly wait for the storage."""

_MODULES = ("video_pipeline.video.container",)

Expanded = list[bytes] | str | bool | None
"""The input objects, as JSON, that a line stands for; or the mistake in the line; or the result of
the run's condition if it does not hold."""


@dataclass(frozen=True)
class ExpandSpec(ProcessSpec):
    """Processes that call ``expand`` of the run's dataset."""

    config: Config
    folder: Path

    def worker(self, shared: Any, number: int) -> Callable[[str, bytes], Expanded]:
        from video_pipeline.data.choosing import dataset_of
        from video_pipeline.tasks.registry import load_task
        from video_pipeline.video.access import Access, limit_access

        limit_access(Access.of(self.config.data))
        dataset = dataset_of(self.config, load_task(self.config))
        return partial(_expand, self.config, dataset, Where.of(self.config))


def _expand(
    config: Config, dataset: type[BaseDataset], where: Where | None, key: str, text: bytes
) -> Expanded:
    from video_pipeline.data.base import expanded, raw_of

    own = orjson.loads(text)
    raw = raw_of(own)
    hidden = {name: own[name] for name in own if name not in raw}  # They have the names of ours.
    try:
        sample = task_sample(key, own, config)
        if where is not None and (holds := _holds(where, dataset, sample)) is not True:
            return holds
        raws = expanded(dataset, sample, dict(config.task_params))
        return [orjson.dumps({**one, **hidden}) for one in raws]
    except Failure:
        raise
    except MemoryError as error:
        raise SampleError("read", "MemoryError", message_of(error)) from None
    except (Exception, SystemExit) as error:
        return (isinstance(error, ValueError) and text_of(error)) or explain(error)


def _holds(where: Where, dataset: type[BaseDataset], sample: dict[str, Any]) -> bool | None:
    """Whether the condition holds for ``sample``. It does if its video cannot be read: then the
    sample becomes an error record."""
    from video_pipeline.video.errors import VideoReadError

    try:
        return where.holds(sample, cache(partial(_header, where, dataset, sample)))
    except VideoReadError:
        return True


def _header(where: Where, dataset: type[BaseDataset], sample: dict[str, Any]) -> dict[str, Any]:
    """The fields of the header of a video. Images have none: the fields are null."""
    from video_pipeline.data.frames import FramesDataset
    from video_pipeline.data.stills import ImageDataset
    from video_pipeline.video.header import read_header

    uri = sample["__video_uri"]
    if not isinstance(uri, str) or issubclass(dataset, ImageDataset | FramesDataset):
        return dict.fromkeys(HEADER_FIELDS)
    return vars(read_header(uri, with_size=where.needs_size))


class Expander:
    """Asks the dataset about lines, many at once."""

    def __init__(self, config: Config, pool: DecodePool) -> None:
        self._input = config.data.source.name
        self._pool = pool

    def ask(self, sample: InputSample) -> Future[Expanded]:
        """Begin to expand ``sample``; :meth:`answer` takes what this returns."""
        return self._pool.submit(sample.key, sample.text)

    def answer(self, sample: InputSample, future: Future[Expanded]) -> list[bytes] | bool | None:
        """Wait for the input objects, as JSON, that ``sample`` stands for; or for the result of the
        run's condition if it does not hold.

        If the process of a sample dies (twice, as in a run), hangs or needs too much memory, the
        sample stays as it is: the inference of the whole then gives it an error record.

        Raises:
            ValueError: The line is bad; the message says why.
            Failure: No sample is at fault.
        """
        try:
            try:
                result = future.result()
            except SampleError as error:
                if error.stage != "crash":
                    raise
                result = self.ask(sample).result()
        except SampleError as error:
            logger.warning(
                "%s, line %d (%s): the dataset cannot tell which samples it stands for: %s: %s. It "
                "stays one sample",
                *(self._input, sample.line, sample.key, error.type, error),
            )
            return [sample.text]
        if isinstance(result, str):
            raise ValueError(result)
        return result


@contextmanager
def expanding(config: Config, num_cores: int) -> Iterator[Expander]:
    """Yields an :class:`Expander` for ``config``; its processes end with the block."""
    with job_processes() as folder:
        pool = DecodePool(
            ForkServer(_MODULES),
            ExpandSpec(config, folder),
            PROCESSES_PER_CORE * num_cores,
            config.data.sample_timeout_s,
        )
        try:
            yield Expander(config, pool)
        finally:
            pool.stop()
