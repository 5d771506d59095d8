"""The built-in task ``structured_caption``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from video_pipeline.tasks.prompts import PromptTask
from video_pipeline.tasks.registry import register_task

_PROMPT = """\
Describe this video as one JSON object and nothing else, with these keys:
"subjects": a list of objects, one for each important person, animal or thing, each with
    "type", "appearance", "action", "expression" and "position";
"scene": where and when it takes place, light and mood;
"camera": shot size, angle and movement;
"time_order": a list of what happens, in order."""


# The docstrings of these models are descriptions in the JSON Schema, which is part of the request
# digest: another word in one of them would infer all finished samples again.


class Subject(BaseModel):
    """A person, an animal or a thing in the video."""

    type: str
    appearance: str
    action: str
    expression: str
    position: str = Field(description="Where in the picture.")


class Camera(BaseModel):
    """How the video was taken."""

    shot_size: str
    angle: str
    movement: str


class Caption(BaseModel):
    """What is to be seen in a video.

    Attributes:
        subjects: What matters in it.
        scene: Where and when it takes place, light and mood.
        camera: How it was taken.
        time_order: What happens, in order.
    """

    subjects: list[Subject] = Field(max_length=16)
    scene: str
    camera: Camera
    time_order: list[str] = Field(max_length=32)


@register_task
class StructuredCaption(PromptTask):
    """Describe subjects, scene, camera and time order as a JSON object, which goes under
    ``caption``. ``task_params.prompt`` or ``prompt_file`` replaces the prompt."""

    name = "structured_caption"
    output_schema = Caption
    default_prompt = _PROMPT
    system = "You are a careful annotator of videos."

    def parse(self, generated_text: Caption, sample: dict[str, Any]) -> dict[str, Any]:
        return {"caption": generated_text.model_dump()}
