"""The built-in dataset ``text``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from video_pipeline.data.base import BaseDataset, item
from video_pipeline.data.prompt import Prompter
from video_pipeline.data.registry import register_dataset


@register_dataset("text")
class TextDataset(BaseDataset):
    """Reads no video: what the model sees is the text of the task's messages. Samples need no
    path."""

    needs_video = False

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        return item(
            sample,
            {
                part: {"prompt": self.prompter.prompt(messages)}
                for part, messages in self.task.conversations(sample).items()
            },
        )

    @cached_property
    def prompter(self) -> Prompter:
        """The model's chat template, loaded when first needed."""
        return Prompter(self.model)
