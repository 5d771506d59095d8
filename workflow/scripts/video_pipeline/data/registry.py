"""The registered datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from video_pipeline.config import Config
from video_pipeline.data.base import BaseDataset
from video_pipeline.errors import UserError
from video_pipeline.registry import Registry
from video_pipeline.tasks.base import Task

_DATASETS: Registry[type[BaseDataset]] = Registry("dataset", BaseDataset)

T = TypeVar("T", bound=type[BaseDataset])


def register_dataset(name: str) -> Callable[[T], T]:
    """Class decorator: make a :class:`BaseDataset` known as ``name``."""
    if not isinstance(name, str):
        raise UserError('register_dataset needs a name: @register_dataset("my_dataset")')
    return lambda cls: _DATASETS.add(name, cls)


def get_dataset(name: str) -> type[BaseDataset]:
    """The dataset registered as ``name``. Raises :class:`UserError` listing those there are."""
    from video_pipeline.data import (  # noqa: F401  (they register)
        clips,
        frames,
        pictures,
        qwen_video,
        text,
    )

    return _DATASETS.get(name)


def dataset_of(config: Config, task: Task) -> type[BaseDataset]:
    """The dataset that reads the samples of ``task``: ``run.dataset``, or the task's own.

    Raises :class:`UserError` if there is no such dataset.
    """
    return get_dataset(config.run.dataset or task.dataset_name)


def create_dataset(
    config: Config, task: Task, samples: Sequence[dict[str, Any]], model: str
) -> BaseDataset:
    """:func:`dataset_of` over ``samples``, for the processor of ``model``."""
    dataset = dataset_of(config, task)(
        samples=samples,
        task=task,
        model=model,
        video_field=config.data.video_field,
        vision_kwargs=config.vision.video_kwargs(),
        params=dict(config.task_params),
    )
    dataset.video_root = config.video_root
    return dataset
