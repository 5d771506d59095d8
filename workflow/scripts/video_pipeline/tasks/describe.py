"""The built-in task ``describe``."""

from __future__ import annotations

from typing import Any

from video_pipeline.tasks.prompts import PromptTask
from video_pipeline.tasks.registry import register_task


@register_task
class Describe(PromptTask):
    """Describe the video in prose. ``task_params.prompt`` (``prompt_file``) replaces the prompt."""

    name = "describe"
    default_prompt = "Describe this video in detail."
    system = "You are a helpful assistant."

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        return {"description": generated_text.strip()}
