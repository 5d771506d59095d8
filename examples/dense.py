"""Dense captions: what happens in a video, event by event, with times."""

from pydantic import BaseModel, Field
from video_pipeline.api import Prompt, Task, register_task

PROMPT = """\
List what happens in this video, in order, as JSON: a "summary" of the whole, and "events" with
"start" and "end" (mm:ss) and a "caption"."""

TIME = r"^[0-9][0-9]:[0-5][0-9]$"


class Event(BaseModel):
    start: str = Field(pattern=TIME)
    end: str = Field(pattern=TIME)
    caption: str = Field(max_length=400)


class DenseCaption(BaseModel):
    summary: str = Field(max_length=800)
    events: list[Event] = Field(min_length=1, max_length=32)


@register_task
class DenseCaptions(Task):
    name = "dense_captions"
    output_schema = DenseCaption
    in_messages = ("prompt", "prompt_file")

    def __init__(self, params=None):
        super().__init__(params)
        self.prompt = Prompt(self.params, "prompt", PROMPT)

    def build_messages(self, sample):
        video = {"type": "video", "video": sample["__video_uri"]}
        text = {"type": "text", "text": self.prompt.render(sample)}
        return [{"role": "user", "content": [video, text]}]

    def parse(self, answer, sample):
        events = [
            {"start": seconds(e.start), "end": seconds(e.end), "caption": e.caption}
            for e in answer.events
        ]
        return {"summary": answer.summary, "events": events}


def seconds(time):
    minutes, rest = time.split(":")
    return 60 * int(minutes) + int(rest)
