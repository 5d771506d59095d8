"""Which of two captions fits a video better: each order is asked, because models favour one."""

from video_pipeline.api import Task, label_scores, register_task


@register_task
class Compare(Task):
    name = "compare"
    output_schema = ["A", "B"]

    def build_messages(self, sample):
        second = sample["previous"]["description"]
        first = sample["previous"]["previous"]["description"]
        video = {"type": "video", "video": sample["__video_uri"]}

        def ask(a, b):
            text = f"A: {a}\n\nB: {b}\n\nWhich caption fits this video better? Answer A or B."
            return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]

        return {"forward": ask(first, second), "backward": ask(second, first)}

    def sampling(self, sample, part):
        return {"logprobs": 2}

    def parse(self, generated_text, sample):
        scores = label_scores(sample["__logprobs"], ["A", "B"])
        return {"first": scores["A" if sample["__part"] == "forward" else "B"]}
