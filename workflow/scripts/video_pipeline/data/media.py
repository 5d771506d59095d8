"""What the datasets have in common that read the videos and images of the task's messages."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from video_pipeline.data.base import BaseDataset, item
from video_pipeline.samples.input import video_uri
from video_pipeline.tasks.base import Messages


class MediaDataset(BaseDataset):
    """Reads the videos and images of the task's messages.

    Attributes:
        hears: Whether it can give the model the sound of a video.
    """

    hears: bool = False

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        conversations = {
            part: [self._complete(message, sample) for message in messages]
            for part, messages in self.task.conversations(sample).items()
        }
        return item(sample, self.llm_inputs(conversations))

    @abstractmethod
    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        """Complete a video or image item of the messages for the reader: its own keys stay."""

    @abstractmethod
    def llm_inputs(self, conversations: dict[str, Messages]) -> dict[str, dict[str, Any]]:
        """Make the input of the model, by part, of messages that :meth:`visual` has completed."""

    def _complete(self, message: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(message["content"], list):
            return message
        return {
            **message,
            "content": [
                self._completed(part, sample)
                if isinstance(part, dict) and ("video" in part or "image" in part)
                else part
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
        if isinstance(media, str) and not media.startswith("data:"):
            return {**part, kind: video_uri(media, self.video_root)}
        if isinstance(media, list):
            return {**part, kind: [video_uri(image, self.video_root) for image in media]}
        return part


def segment_of(sample: dict[str, Any]) -> dict[str, Any]:
    """``video_start`` and ``video_end`` of a sample, in seconds, as far as it has them."""
    names = ("video_start", "video_end")
    return {name: sample[name] for name in names if sample.get(name) is not None}
