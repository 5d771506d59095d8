"""The registered tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from video_pipeline.plugins import load_plugins
from video_pipeline.registry import Registry
from video_pipeline.tasks.base import Task

if TYPE_CHECKING:
    from video_pipeline.config import Config

_TASKS: Registry[type[Task]] = Registry("task", Task)

T = TypeVar("T", bound=type[Task])


def register_task(cls: T) -> T:
    """Class decorator: make a :class:`Task` known under its ``name``."""
    return _TASKS.add(getattr(cls, "name", ""), cls)


def get_task(name: str) -> type[Task]:
    """The task registered as ``name``. Raises :class:`UserError` listing those there are."""
    from video_pipeline.tasks import describe, structured_caption  # noqa: F401  (they register)

    return _TASKS.get(name)


def load_task(config: Config) -> Task:
    """The task that a configuration asks for, after its plugins were imported. Raises
    :class:`UserError` where one cannot be, or no task has that name."""
    load_plugins(config.run.plugins)
    return get_task(config.run.task)(dict(config.task_params))
