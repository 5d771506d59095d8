"""One tag of a fixed list for each video, with the probability of each tag."""

from string import ascii_uppercase

from video_pipeline.api import Task, UserError, label_scores, register_task


@register_task
class Tags(Task):
    name = "tags"

    def __init__(self, params=None):
        super().__init__(params)
        tags = self.params.get("tags", [])
        are_texts = isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)
        if not (are_texts and 2 <= len(tags) <= len(ascii_uppercase)):
            raise UserError(f"task_params.tags: expected 2 to 26 texts, got {tags!r:.80}")
        # Each letter is one token, so its probability is that of the tag.
        self.tags = dict(zip(ascii_uppercase, tags, strict=False))

    def build_messages(self, sample):
        lines = [f"{letter}. {tag}" for letter, tag in self.tags.items()]
        asked = ["Which of these fits this video best? Answer with its letter.", *lines]
        video = {"type": "video", "video": sample["__video_uri"]}
        return [{"role": "user", "content": [video, {"type": "text", "text": "\n".join(asked)}]}]

    def schema(self, part):
        return list(self.tags)

    def sampling(self, sample, part):
        return {"logprobs": len(self.tags)}

    def parse(self, generated_text, sample):
        scores = label_scores(sample["__logprobs"], self.tags)
        return {
            "tag": self.tags[generated_text],
            "scores": {self.tags[letter]: score for letter, score in scores.items()},
        }
