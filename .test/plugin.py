"""A task and a dataset that need neither a video nor a model's tokenizer."""

from video_pipeline.data.base import BaseDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task


@register_dataset("names")
class Names(BaseDataset):
    """Shows the engine a name."""

    needs_video = False

    def __getitem__(self, i):
        """The prompt of one sample."""
        sample = self.samples[i]
        return {
            "__key": sample["__key"],
            "raw": sample,
            "llm_input": {"prompt": sample["name"], "multi_modal_data": {}},
        }


@register_task
class Greet(Task):
    """Asks for a greeting."""

    name = "greet"
    dataset_name = "names"

    def build_messages(self, sample):
        """One message."""
        return [{"role": "user", "content": f"Greet {sample['name']}."}]

    def parse(self, generated_text, sample):
        """The text as it is."""
        return {"greeting": generated_text.strip()}
