"""The base class of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from video_pipeline.errors import TaskError, where

RESERVED_FIELDS = frozenset({"input", "output_text"})
"""Fields of an output record that are not the task's; so are all that start with ``__``."""


class Task(ABC):
    """What is asked about each sample, and how the model's text becomes fields.

    Attributes:
        name: The name in ``run.task``.
        dataset_name: The dataset that reads the samples of this task.
        params: ``task_params`` of the configuration.
    """

    name: str = ""
    dataset_name: str = "qwen_video"

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        self.params = params or {}

    @abstractmethod
    def build_messages(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        """The conversation for ``sample``, in the form that Qwen's chat templates take.

        ``sample`` is the input object plus ``__key`` and ``__video_uri``. The result must be the
        same each time: randomness must be seeded from ``sample["__key"]``.
        """

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        """Fields of the output record, from what the model said. An exception makes the sample an
        error record of stage ``parse``; the text is kept."""
        return {}

    def messages(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        """:meth:`build_messages`, checked. Raises :class:`TaskError` naming the sample."""
        try:
            messages = self.build_messages(sample)
        except Exception as error:
            raise TaskError(
                f"task {self.name!r}: build_messages failed for sample {sample['__key']!r}: "
                f"{type(error).__name__}: {error} ({where(error)})"
            ) from error
        if not (
            isinstance(messages, list)
            and messages
            and all(isinstance(m, dict) and "role" in m and "content" in m for m in messages)
        ):
            raise TaskError(
                f"task {self.name!r}: build_messages must return a list of messages, each with "
                f"`role` and `content`; for sample {sample['__key']!r} it returned "
                f"{messages!r:.200}"
            )
        return messages

    def parsed(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        """:meth:`parse`, checked. Raises :class:`TaskError` if the result is no dict or holds a
        reserved name; what the user's own code raises passes through."""
        fields = self.parse(generated_text, sample)
        if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
            raise TaskError(
                f"task {self.name!r}: parse must return a dict with text keys, it returned "
                f"{fields!r:.200}"
            )
        reserved = sorted(n for n in fields if n.startswith("__") or n in RESERVED_FIELDS)
        if reserved:
            raise TaskError(
                f"task {self.name!r}: parse returned {', '.join(map(repr, reserved))}; names that "
                "start with '__', 'input' and 'output_text' are reserved, use another"
            )
        return fields
