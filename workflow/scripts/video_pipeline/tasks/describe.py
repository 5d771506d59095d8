"""The built-in task ``describe``."""

from __future__ import annotations

from typing import Any

from video_pipeline.tasks.base import Messages, Task
from video_pipeline.tasks.prompts import Prompt
from video_pipeline.tasks.registry import register_task


@register_task
class Describe(Task):
    """Describe the video in prose. ``task_params.prompt`` or ``prompt_file`` replaces the
    question."""

    name = "describe"
    in_messages = ("prompt", "prompt_file")

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        self._prompt = Prompt(self.params, "prompt", "Describe this video in detail.")

    def build_messages(self, sample: dict[str, Any]) -> Messages:
        return [
            {"role": "system", "content": "You are a helpful assistant."},
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": sample["__video_uri"]},
                    {"type": "text", "text": self._prompt.render(sample)},
                ],
            },
        ]

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        return {"description": generated_text.strip()}
