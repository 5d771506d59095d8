"""The built-in datasets that show single pictures: ``image``, ``first_frame`` and ``keyframes``."""

from __future__ import annotations

from typing import Any

from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset


@register_dataset("image")
class ImageDataset(QwenVideoDataset):
    """The sample's path names an image, which takes the place of the video in the task's
    messages."""

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") == sample["__video_uri"]:
            part = {"type": "image", "image": part["video"]}
        return super().visual(part, sample)


@register_dataset("first_frame")
class FirstFrameDataset(QwenVideoDataset):
    """The first frame of the sample's video (of its segment), as an image."""

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") == sample["__video_uri"]:
            from video_pipeline.video.reader import read_frame

            frame = read_frame(part["video"], sample.get("video_start") or 0.0)
            part = {"type": "image", "image": frame}
        return super().visual(part, sample)


@register_dataset("keyframes")
class KeyframesDataset(QwenVideoDataset):
    """The key frames of the sample's video (of its segment), at most ``vision.max_frames``: where
    an encoder saw something new, and cheap to decode."""

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") == sample["__video_uri"]:
            part = {"keyframes": True, **part}
        return super().visual(part, sample)
