"""The built-in dataset ``qwen_video``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from video_pipeline.data.base import BaseDataset, item
from video_pipeline.data.prompt import Prompter
from video_pipeline.data.registry import register_dataset
from video_pipeline.tasks.base import Messages


@register_dataset("qwen_video")
class QwenVideoDataset(BaseDataset):
    """Reads the videos (and images) of the task's messages with
    ``qwen_vl_utils.process_vision_info``."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        conversations = {
            part: self.with_vision_kwargs(messages, sample)
            for part, messages in self.task.conversations(sample).items()
        }
        return item(sample, self.llm_inputs(conversations))

    @cached_property
    def prompter(self) -> Prompter:
        """The model's chat template and patch size, loaded when first needed."""
        return Prompter(self.model)

    def with_vision_kwargs(
        self, messages: Messages, sample: dict[str, Any]
    ) -> Messages:
        """``messages`` with the ``vision`` section and the segment of ``sample``
        (``video_start``, ``video_end``, in seconds) in every video item. What the task put there
        itself stays."""
        segment = {
            name: sample[name]
            for name in ("video_start", "video_end")
            if sample.get(name) is not None
        }
        reader = {"image_patch_size": self.prompter.patch_size}
        defaults = {**self.vision_kwargs, **segment, **reader}
        return [
            {**message, "content": [self._with(defaults, part) for part in message["content"]]}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ]

    @staticmethod
    def _with(defaults: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(part, dict) or "video" not in part:
            return part
        if "nframes" in part:  # qwen-vl-utils accepts either fps or nframes
            defaults = {k: v for k, v in defaults.items() if k != "fps"}
        return {**defaults, **part}

    def llm_inputs(self, conversations: dict[str, Messages]) -> dict[str, dict[str, Any]]:
        """Prompt and media of each conversation. Media that several ask about are read once, and
        are the same objects in each."""
        from qwen_vl_utils import extract_vision_info

        read: dict[str, dict[str, Any]] = {}
        inputs = {}
        for part, messages in conversations.items():
            media = repr(extract_vision_info(messages))
            if media not in read:
                read[media] = self.read(messages)
            inputs[part] = {"prompt": self.prompter.prompt(messages), **read[media]}
        return inputs

    def read(self, messages: Messages) -> dict[str, Any]:
        """The media of finished ``messages``, sampled and resized exactly once: frames are uint8
        tensors (frames, 3, height, width), and the processor is told to leave them alone."""
        from qwen_vl_utils import process_vision_info

        from video_pipeline.video.reader import register_reader

        register_reader()
        images, videos, video_kwargs = process_vision_info(
            messages,
            image_patch_size=self.prompter.patch_size,
            return_video_kwargs=True,
            return_video_metadata=True,
        )
        media: dict[str, Any] = {}
        if images:
            media["image"] = images
        if videos:
            # process_vision_info returns float frames whose values are whole numbers
            media["video"] = [(frames.to(torch.uint8), metadata) for frames, metadata in videos]
        return {
            "multi_modal_data": media,
            "mm_processor_kwargs": {**video_kwargs, "do_resize": False},
        }
