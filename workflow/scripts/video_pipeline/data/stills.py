"""The built-in datasets that show single pictures: ``image``, ``first_frame`` and ``keyframes``."""

from __future__ import annotations

from typing import Any

from PIL import Image

from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.video.errors import note_damage, noting_damage


@register_dataset("image")
class ImageDataset(QwenVideoDataset):
    """The sample's path names an image, which replaces the video in the task's messages."""

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") == sample["__video_uri"]:
            part = {"type": "image", "image": part["video"]}
        return super().visual(part, sample)


@register_dataset("first_frame")
class FirstFrameDataset(QwenVideoDataset):
    """The first frame of the sample's video (of its segment), as an image."""

    version = QwenVideoDataset.version + 1

    _last: tuple[tuple[str, float | None, float | None], Image.Image, list[str]] | None = None

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") == sample["__video_uri"]:
            start, end = sample.get("video_start"), sample.get("video_end")
            frame = self._frame(part["video"], start, end)
            part = {"type": "image", "image": frame}
        return super().visual(part, sample)

    def _frame(self, uri: str, start: float | None, end: float | None) -> Image.Image:
        """The frame: the same object for all questions about a sample, so it is encoded once."""
        from video_pipeline.video.reader import read_frame

        if self._last is None or self._last[0] != (uri, start, end):
            with noting_damage() as damage:
                frame = read_frame(uri, start, end)
            self._last = (uri, start, end), frame, damage
        _, frame, damage = self._last
        for message in damage:
            note_damage(message)
        return frame


@register_dataset("keyframes")
class KeyframesDataset(QwenVideoDataset):
    """The key frames of the sample's video (of its segment): at most ``vision.nframes`` if that is
    set, otherwise ``vision.max_frames``. An encoder often starts one at a new scene, and they are
    cheap to decode."""

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") == sample["__video_uri"]:
            nframes = self.vision_kwargs.get("nframes")
            most = {} if nframes is None else {"max_frames": nframes}
            part = {"keyframes": True, **most, **part}
        return super().visual(part, sample)
