"""The registered datasets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from video_pipeline.data.base import BaseDataset
from video_pipeline.errors import UserError
from video_pipeline.registry import Registry

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
