"""The registered tasks."""

from __future__ import annotations

from typing import TypeVar

from video_pipeline.registry import Registry
from video_pipeline.tasks.base import Task

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
