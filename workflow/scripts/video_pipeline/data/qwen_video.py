"""The built-in dataset ``qwen_video``."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from video_pipeline.data.base import BaseDataset, item
from video_pipeline.data.registry import register_dataset
from video_pipeline.model.prompt import Prompter, check_placeholders, is_medium
from video_pipeline.samples.input import video_address
from video_pipeline.samples.windows import CUT
from video_pipeline.tasks.base import Messages


@register_dataset("qwen_video")
class QwenVideoDataset(BaseDataset):
    """Reads the videos and images of the task's messages with
    ``qwen_vl_utils.process_vision_info``: any number of each, by path or address.

    A dataset that shows the model something else than the whole video overrides :meth:`visual`,
    which replaces one item by another. To show several images for a video, override
    :meth:`llm_inputs`. A dataset that overrides only :meth:`visual` serves any model: beyond the
    Qwen-VL line the dataset ``video`` prepares its media.

    Attributes:
        hears: Whether it can give the model the sound of a video.
    """

    version = 2
    hears: bool = False

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        conversations = {
            part: [self._complete(message, sample) for message in messages]
            for part, messages in self.task.conversations(sample).items()
        }
        return item(sample, self.llm_inputs(conversations))

    @cached_property
    def prompter(self) -> Prompter:
        """The model's chat template and patch size, loaded at first use."""
        return Prompter(self.model, self.chat_template_kwargs)

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        """Complete a video or image item of the messages for the reader.

        Args:
            part: The item as the task wrote it. Its own keys stay.
            sample: The sample that the messages are about.

        Returns:
            The item with the settings of the ``vision`` section; a video also with the segment of
            the sample (``video_start`` and ``video_end``, in seconds).
        """
        if "image" in part:
            sizes = {name: self.vision_kwargs.get(name) for name in ("min_pixels", "max_pixels")}
            return {**{name: size for name, size in sizes.items() if size is not None}, **part}
        reader = {"image_patch_size": self.prompter.patch_size}
        defaults = {**self.vision_kwargs, **segment_of(sample), **reader}
        for own, other in (("nframes", "fps"), ("fps", "nframes")):  # qwen-vl-utils accepts one.
            if own in part:
                defaults.pop(other, None)
        return {**defaults, **part}

    def llm_inputs(self, conversations: dict[str, Messages]) -> dict[str, dict[str, Any]]:
        """Make the prompt and read the media of each conversation.

        Args:
            conversations: Messages that :meth:`visual` has completed, by part.

        Returns:
            The input of the model by part. Conversations about the same media share them: they are
            read once, and are the same objects in each.

        Raises:
            PlaceholderError: The chat template leaves a medium out, or shows it twice.
        """
        from qwen_vl_utils import extract_vision_info

        read: dict[str, dict[str, Any]] = {}
        inputs = {}
        for part, messages in conversations.items():
            llm_input = self.prompter.llm_input(messages)
            media = repr(extract_vision_info(messages))
            if media not in read:
                read[media] = self.read(messages)
            inputs[part] = {**llm_input, **read[media]}
            check_placeholders(self.model, inputs[part])
        return inputs

    def read(self, messages: Messages) -> dict[str, Any]:
        """Read the media of completed ``messages``, sampled and resized exactly once.

        Returns:
            ``multi_modal_data`` with frames as uint8 tensors (frames, 3, height, width), and
            ``mm_processor_kwargs`` that tell the processor not to resize them again.

        Raises:
            VideoReadError: A video or an image cannot be read, or may not.
        """
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
            # process_vision_info returns float frames whose values are whole numbers.
            media["video"] = [(frames.to(torch.uint8), metadata) for frames, metadata in videos]
        return {
            "multi_modal_data": media,
            "mm_processor_kwargs": {**video_kwargs, "do_resize": False},
        }

    def _complete(self, message: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(message["content"], list):
            return message
        return {
            **message,
            "content": [
                self._completed(part, sample) if is_medium(part) else part
                for part in message["content"]
            ],
        }

    def _completed(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        part = self.visual(self._located(part), sample)
        if part.get("use_audio_in_video") and not self.hears:
            raise ValueError(
                "a video of a message has use_audio_in_video, and this model hears nothing here: "
                "dataset 'video' reads sound for the omni models of Qwen (Qwen2.5-Omni, Qwen3-Omni)"
            )
        return part

    def _located(self, part: dict[str, Any]) -> dict[str, Any]:
        """Make relative paths in ``part`` absolute. ``__video_uri`` is absolute already; other
        fields of a sample need not be."""
        kind = "video" if "video" in part else "image"
        media = part[kind]
        if isinstance(media, str) and media.startswith("data:"):
            return part
        address = video_address(media, self.video_root)
        return part if address is None else {**part, kind: address}


def segment_of(sample: dict[str, Any]) -> dict[str, Any]:
    """``video_start`` and ``video_end`` of a sample, in seconds, if it has them."""
    return {name: sample[name] for name in CUT if sample.get(name) is not None}
