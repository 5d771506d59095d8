"""A dataset that returns tensors of a given size without reading anything, and its task."""

import torch
from video_pipeline.data.base import BaseDataset, raw_of
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task


@register_dataset("tensors")
class TensorDataset(BaseDataset):
    """``params["bytes"]``: size of the one video; 0: a prompt without media."""

    def __getitem__(self, i):
        sample = self.samples[i]
        media = {}
        if self.params["bytes"]:
            frames = torch.zeros((4, 3, 1, self.params["bytes"] // 12), dtype=torch.uint8)
            media["video"] = [(frames, {"fps": 2.0, "total_num_frames": 4})]
        return {
            "__key": sample["__key"],
            "raw": raw_of(sample),
            "llm_input": {"prompt": "x" * 40, "multi_modal_data": media},
        }


@register_task
class Hold(Task):
    """Asks about a sample that is no video."""

    name = "hold"
    dataset_name = "tensors"

    def build_messages(self, sample):
        return [{"role": "user", "content": "What happens?"}]
