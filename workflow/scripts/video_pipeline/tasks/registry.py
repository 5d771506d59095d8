"""The registered tasks."""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

from video_pipeline.common.plugins import load_plugins
from video_pipeline.common.registry import Registry
from video_pipeline.config import Config
from video_pipeline.errors import UserError, user_code
from video_pipeline.tasks.base import Task, checked_names

_TASKS: Registry[type[Task]] = Registry(
    "task",
    Task,
    built_ins=(
        "video_pipeline.tasks.describe",
        "video_pipeline.tasks.questions",
        "video_pipeline.tasks.rewrite",
        "video_pipeline.tasks.structured_caption",
    ),
)

T = TypeVar("T", bound=type[Task])


def register_task(cls: T) -> T:
    """Class decorator: make a :class:`Task` known under its ``name``."""
    if isinstance(cls, str):
        raise UserError(
            f"register_task takes no name: @register_task, and name = {cls!r} in the class"
        )
    _TASKS.add(getattr(cls, "name", ""), cls)
    return cls


def get_task(name: str) -> type[Task]:
    """The task named ``name``. Raises :class:`UserError` with all names if there is none."""
    return _TASKS.get(name)


def load_task(config: Config) -> Task:
    """Import the plugins of ``config`` and make its task.

    Raises :class:`UserError` if a plugin cannot be imported, no task has the name in ``run.task``,
    or the task does not take its parameters.
    """
    load_plugins(config.run.plugins)
    name = config.run.task
    advice = ". It is called with task_params and must pass them on: super().__init__(params)"
    with user_code(f"task {name!r}: its __init__ failed", advice):
        task = get_task(name)(deepcopy(config.task_params))  # It may change its own.
    checked_names(task.in_messages, f"task {name!r}: in_messages")
    return task
