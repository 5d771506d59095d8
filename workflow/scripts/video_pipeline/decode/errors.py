"""Errors of a sample before the engine has it."""

from __future__ import annotations

from typing import Any

from video_pipeline.errors import place_of, text_of, user_frame, where

_SLIPS = (LookupError, TypeError, AttributeError, NameError)
"""Exceptions of programming mistakes: nobody raises these to describe a bad sample."""


class SampleError(Exception):
    """A sample that could not be prepared.

    Attributes:
        stage: ``read``, ``timeout``, ``crash`` or ``generate``, as in the output.
        type: Name of the exception.
    """

    def __init__(self, stage: str, type: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.type = type

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleError, (self.stage, self.type, str(self))

    def as_record(self) -> dict[str, str]:
        """The ``__error`` of the sample's record."""
        return {"stage": self.stage, "type": self.type, "message": str(self)}


def message_of(error: BaseException) -> str:
    """The text of an exception of user code, for people; with the user's line if it looks like a
    mistake in the code. If the text is empty, the line that raised it takes its place."""
    if isinstance(error, MemoryError):
        return "not enough memory; the limit of a decode process is data.worker_memory_gb"
    if text := text_of(error):
        return f"{text}{place_of(error)}" if isinstance(error, _SLIPS) else text
    return f"{user_frame(error).line} ({where(error)})"
