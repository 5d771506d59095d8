"""Which samples a line of the input stands for: ``Dataset.expand``, in processes that may die."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from video_pipeline.config import Config
from video_pipeline.data.fork_server import ForkServer
from video_pipeline.data.workers import DecodePool, ProcessSpec, SampleError, message_of
from video_pipeline.errors import Failure, explain
from video_pipeline.processes import job_processes
from video_pipeline.samples.input import InputSample, task_sample

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset

logger = logging.getLogger(__name__)

PROCESSES_PER_CORE = 4
"""They wait for the storage more than they work."""

_MODULES = ("video_pipeline.video.container",)


@dataclass(frozen=True)
class ExpandSpec(ProcessSpec):
    """Processes that call ``expand`` of the run's dataset."""

    config: Config
    folder: Path

    def worker(self, shared: Any, number: int) -> Callable[..., Any]:
        from video_pipeline.data.registry import dataset_of
        from video_pipeline.tasks.registry import load_task
        from video_pipeline.video.access import Access, limit_access

        limit_access(Access.of(self.config.data))
        return partial(_expand, self.config, dataset_of(self.config, load_task(self.config)))


def _expand(config: Config, dataset: type[BaseDataset], key: str, text: bytes) -> list[bytes] | str:
    """The input objects, as JSON, that the one in ``text`` stands for; what is wrong with its line
    if the dataset refuses it."""
    from video_pipeline.data.base import expanded

    try:
        sample = task_sample(key, orjson.loads(text), config)
        return [orjson.dumps(raw) for raw in expanded(dataset, sample, dict(config.task_params))]
    except Failure:
        raise
    except MemoryError as error:
        raise SampleError("read", "MemoryError", message_of(error)) from None
    except (Exception, SystemExit) as error:
        return str(error) if isinstance(error, ValueError) and str(error) else explain(error)


class Expander:
    """Asks the dataset about lines, many at once."""

    def __init__(self, config: Config, pool: DecodePool) -> None:
        self._input = config.data.input_jsonl
        self._pool = pool

    def ask(self, sample: InputSample) -> Future[list[bytes] | str]:
        """Begin to expand ``sample``; :meth:`answer` takes what this returns."""
        return self._pool.submit(sample.key, sample.text)

    def answer(self, sample: InputSample, asked: Future[list[bytes] | str]) -> list[bytes]:
        """The input objects, as JSON, that ``sample`` stands for. It stays as it is if its process
        dies (twice, as in a run), hangs or needs too much memory: the inference of the whole then
        says what is wrong with it.

        Raises :class:`ValueError` for a bad line, and :class:`Failure` where no sample is at fault.
        """
        try:
            try:
                found = asked.result()
            except SampleError as error:
                if error.stage != "crash":
                    raise
                found = self.ask(sample).result()
        except SampleError as error:
            logger.warning(
                "%s, line %d (%s): the dataset cannot tell which samples it stands for: %s: %s. It "
                "stays one sample",
                self._input,
                sample.line,
                sample.key,
                error.type,
                error,
            )
            return [sample.text]
        if isinstance(found, str):
            raise ValueError(found)
        return found


@contextmanager
def expanding(config: Config, num_cores: int) -> Iterator[Expander]:
    """Yields what expands the samples of ``config``, in processes that end with the block."""
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
