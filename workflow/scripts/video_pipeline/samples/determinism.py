"""Tasks must ask the same about a sample each time: resume finds a finished sample by that."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from video_pipeline.errors import TaskError
from video_pipeline.samples.identity import request_digests
from video_pipeline.tasks.base import Task

TWICE = 100
"""How many samples have their messages built twice, to see that they come out the same."""


def check_deterministic(
    task: Task,
    sample: dict[str, Any],
    video: Any,
    requests: dict[str, str],
    sample_fields: Collection[str] = (),
) -> None:
    """Raise :class:`TaskError` if building the messages of ``sample`` again gives others."""
    if request_digests(task, sample, video, sample_fields) != requests:
        raise TaskError(
            f"task {task.name!r}: build_messages gave two different conversations for sample "
            f"{sample['__key']!r}; resume needs the same one each time. If it draws at random, "
            "seed it from the key: random.Random(sample['__key'])"
        )
