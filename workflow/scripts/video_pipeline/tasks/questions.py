"""The built-in task ``questions``."""

from __future__ import annotations

from typing import Any

from video_pipeline.errors import UserError
from video_pipeline.tasks.base import Messages, Task
from video_pipeline.tasks.prompts import Prompt, about_video
from video_pipeline.tasks.registry import register_task

_QUESTIONS = {
    "summary": "Summarise this video in one sentence.",
    "tags": "Name ten keywords for this video, separated by commas.",
    "text": "Which text is to be read in this video? Answer 'none' if there is none.",
}


@register_task
class Questions(Task):
    """Ask several questions about each video, each in a conversation of its own. The video is read
    and encoded once.

    ``task_params.questions`` holds them by name; the answer to each goes under its name.
    """

    name = "questions"
    in_messages = ("questions",)

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(params)
        questions = self.params.get("questions", _QUESTIONS)
        if not isinstance(questions, dict) or not questions:
            raise UserError(
                f"task_params.questions: expected questions by name, got {questions!r:.80}"
            )
        self._prompts = {
            name: Prompt(questions, name, place="task_params.questions") for name in questions
        }

    def build_messages(self, sample: dict[str, Any]) -> dict[str, Messages]:
        return {
            name: about_video(sample, prompt.render(sample))
            for name, prompt in self._prompts.items()
        }

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        return {"answer": generated_text.strip()}
