"""The registered tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from video_pipeline.errors import Failure, TaskError, explain
from video_pipeline.plugins import load_plugins
from video_pipeline.registry import Registry
from video_pipeline.tasks.base import Task, checked_names

if TYPE_CHECKING:
    from video_pipeline.config import Config

_TASKS: Registry[type[Task]] = Registry("task", Task)

T = TypeVar("T", bound=type[Task])


def register_task(cls: T) -> T:
    """Class decorator: make a :class:`Task` known under its ``name``."""
    return _TASKS.add(getattr(cls, "name", ""), cls)


def get_task(name: str) -> type[Task]:
    """The task registered as ``name``. Raises :class:`UserError` listing those there are."""
    from video_pipeline.tasks import (  # noqa: F401  (they register)
        describe,
        questions,
        rewrite,
        structured_caption,
    )

    return _TASKS.get(name)


def load_task(config: Config) -> Task:
    """The task that a configuration asks for, after its plugins were imported. Raises
    :class:`UserError` where one cannot be, or no task has that name."""
    load_plugins(config.run.plugins)
    name = config.run.task
    try:
        task = get_task(name)(dict(config.task_params))
    except Failure:
        raise
    except Exception as error:
        raise TaskError(
            f"task {name!r}: its __init__ failed: {explain(error)}. It is called with "
            "task_params, and hands them on: super().__init__(params)"
        ) from error
    checked_names(task.in_messages, f"task {name!r}: in_messages")
    return task
