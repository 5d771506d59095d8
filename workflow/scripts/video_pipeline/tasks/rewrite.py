"""The built-in task ``rewrite``."""

from __future__ import annotations

from typing import Any

from video_pipeline.tasks.base import Messages, Task
from video_pipeline.tasks.prompts import Prompt
from video_pipeline.tasks.registry import register_task

_PROMPT = """\
Rewrite these notes about a video as one paragraph of fluent prose. Leave nothing out and add
nothing.

{{ previous.output_text }}"""


@register_task
class Rewrite(Task):
    """Have a text model work on what an earlier run said: rewrite, judge, translate.

    ``task_params.prompt`` or ``prompt_file`` is a template over the fields of the sample; what the
    earlier run said is in ``previous``. No video is read. The answer goes under ``text``.
    """

    name = "rewrite"
    dataset_name = "text"
    in_messages = ("prompt", "prompt_file")

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        self._prompt = Prompt(self.params, "prompt", _PROMPT)

    def build_messages(self, sample: dict[str, Any]) -> Messages:
        return [{"role": "user", "content": self._prompt.render(sample)}]

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        return {"text": generated_text.strip()}
