"""Yes/no questions about each video, each with a confidence: the model's own probability."""

from video_pipeline.api import Prompt, Task, label_scores, register_task

ANSWERS = ["Yes", "No"]


@register_task
class YesNo(Task):
    name = "yes_no"
    output_schema = ANSWERS
    in_messages = ("questions",)

    def __init__(self, params=None):
        super().__init__(params)
        questions = self.params.get("questions", {})
        self.prompts = {
            name: Prompt(questions, name, place="task_params.questions") for name in questions
        }

    def build_messages(self, sample):
        return {name: self.ask(sample, prompt) for name, prompt in self.prompts.items()}

    def ask(self, sample, prompt):
        video = {"type": "video", "video": sample["__video_uri"]}
        text = {"type": "text", "text": f"{prompt.render(sample)} Answer Yes or No."}
        return [{"role": "user", "content": [video, text]}]

    def sampling(self, sample, part):
        return {"logprobs": 20}

    def parse(self, generated_text, sample):
        scores = label_scores(sample["__logprobs"], ANSWERS)
        answer = max(scores, key=scores.get)
        return {"answer": answer, "confidence": scores[answer]}
