"""The built-in task ``structured_caption``."""

from __future__ import annotations

import json
import re
from typing import Any

from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task

_QUESTION = """\
Describe this video as one JSON object and nothing else, with these keys:
"subjects": a list of objects, one for each important person, animal or thing, each with
    "type", "appearance", "action", "expression" and "position";
"scene": where and when it takes place, light and mood;
"camera": shot size, angle and movement;
"time_order": a list of what happens, in order."""

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


@register_task
class StructuredCaption(Task):
    """Describe subjects, scene, camera and time order as a JSON object.

    The answer goes under ``caption``; an answer that holds no JSON object is an error of stage
    ``parse``.
    """

    name = "structured_caption"

    def build_messages(self, sample: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"role": "system", "content": "You are a careful annotator of videos."},
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": sample["__video_uri"]},
                    {"type": "text", "text": self.params.get("prompt", _QUESTION)},
                ],
            },
        ]

    def parse(self, generated_text: str, sample: dict[str, Any]) -> dict[str, Any]:
        fenced = _FENCE.search(generated_text)
        text = fenced.group(1) if fenced else generated_text
        try:
            caption = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the answer is not a JSON object: {error}") from error
        if not isinstance(caption, dict):
            raise ValueError(f"the answer is JSON, but no object: {text:.80}")
        return {"caption": caption}
