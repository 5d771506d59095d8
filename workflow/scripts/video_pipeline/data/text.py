"""The built-in dataset ``text``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from video_pipeline.data.base import BaseDataset, item
from video_pipeline.data.registry import register_dataset
from video_pipeline.model.family import family_of_folder
from video_pipeline.model.prompt import PlaceholderError, Prompter, is_medium
from video_pipeline.tasks.base import Messages


@register_dataset("text")
class TextDataset(BaseDataset):
    """Reads no video: the model sees only the text of the task's messages. Samples need no path."""

    needs_video = False

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        conversations = self.task.conversations(sample).items()
        return item(sample, {part: self.llm_input(messages) for part, messages in conversations})

    def llm_input(self, messages: Messages) -> dict[str, Any]:
        """The prompt of ``messages``. Raises :class:`PlaceholderError` if they show media."""
        for message in messages:
            parts = message["content"] if isinstance(message["content"], list) else []
            if any(map(is_medium, parts)):
                raise PlaceholderError(
                    "a message shows a video or an image, and dataset 'text' reads none: take "
                    "another one (run.dataset)"
                )
        if family_of_folder(self.model) not in ("qwen_vl", None):
            return {"messages": messages}  # vLLM knows the form that each template takes.
        return self.prompter.llm_input(messages)

    @cached_property
    def prompter(self) -> Prompter:
        """The model's chat template, loaded at first use."""
        return Prompter(self.model, self.chat_template_kwargs)
