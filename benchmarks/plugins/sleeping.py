"""A dataset that sleeps instead of reading, and its task."""

import math
import random
import time

from video_pipeline.data.base import BaseDataset, raw_of
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import register_task


def reading_time(key, mean, spread):
    """Seconds to read sample ``key``: log-normal with this mean."""
    return random.Random(key).lognormvariate(math.log(mean) - spread**2 / 2, spread)


@register_dataset("sleeping")
class SleepingDataset(BaseDataset):
    """``params``: ``seconds`` (mean) and ``spread`` (sigma of the logarithm)."""

    def __getitem__(self, i):
        sample = self.samples[i]
        time.sleep(reading_time(sample["__key"], self.params["seconds"], self.params["spread"]))
        return {
            "__key": sample["__key"],
            "raw": raw_of(sample),
            "llm_input": {"prompt": "x" * 40, "multi_modal_data": {}},
        }


@register_task
class Sleep(Task):
    """Asks about a sample that is no video."""

    name = "sleep"
    dataset_name = "sleeping"

    def build_messages(self, sample):
        return [{"role": "user", "content": "What happens?"}]
