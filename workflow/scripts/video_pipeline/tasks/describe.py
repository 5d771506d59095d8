"""The built-in task ``describe``."""

from __future__ import annotations

from typing import Any

from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task


@register_task
class Describe(Task):
    """Describe the video in prose. ``task_params.prompt`` replaces the question."""

    name = "describe"

    def build_messages(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        question = self.params.get("prompt", "Describe this video in detail.")
        return [
            {"role": "system", "content": "You are a helpful assistant."},
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": sample["__video_uri"]},
                    {"type": "text", "text": question},
                ],
            },
        ]

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        return {"description": generated_text.strip()}
