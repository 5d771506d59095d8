"""The built-in task ``rewrite``."""

from __future__ import annotations

from typing import Any

from video_pipeline.tasks.base import Messages
from video_pipeline.tasks.prompts import PromptTask
from video_pipeline.tasks.registry import register_task


@register_task
class Rewrite(PromptTask):
    """Have a text model rewrite, judge or translate the answer of an earlier run.

    ``task_params.prompt`` or ``prompt_file`` is a template over the fields of the sample; the
    earlier record is in ``previous``. No video is read. The answer goes under ``text``.
    """

    name = "rewrite"
    dataset_name = "text"
    default_prompt = """\
Rewrite these notes about a video as one paragraph of fluent prose. Leave nothing out and add
nothing.

{{ previous.output_text }}"""

    def build_messages(self, sample: dict[str, Any]) -> Messages:
        return [{"role": "user", "content": self._prompt.render(sample)}]

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        return {"text": generated_text.strip()}
