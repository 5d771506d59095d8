"""The registered datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from video_pipeline.common.registry import Registry
from video_pipeline.data.base import BaseDataset
from video_pipeline.errors import UserError

_DATASETS: Registry[type[BaseDataset]] = Registry(
    "dataset",
    BaseDataset,
    built_ins=(
        "video_pipeline.data.clips",
        "video_pipeline.data.frames",
        "video_pipeline.data.qwen_video",
        "video_pipeline.data.stills",
        "video_pipeline.data.text",
        "video_pipeline.data.video",
    ),
)

D = TypeVar("D", bound=BaseDataset)


def register_dataset(name: str) -> Callable[[type[D]], type[D]]:
    """Class decorator: make a subclass of :class:`BaseDataset` known as ``name``.

    Raises:
        UserError: The name is missing or taken, or the class is not a complete dataset.
    """
    if not isinstance(name, str):
        raise UserError('register_dataset needs a name: @register_dataset("my_dataset")')

    def register(cls: type[D]) -> type[D]:
        _DATASETS.add(name, cls)
        return cls

    return register


def get_dataset(name: str) -> type[BaseDataset]:
    """The dataset named ``name``. Raises :class:`UserError` with all names if there is none."""
    return _DATASETS.get(name)
