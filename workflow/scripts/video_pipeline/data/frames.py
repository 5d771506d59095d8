"""The built-in dataset ``frames``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from video_pipeline.data.base import item
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.video.access import permitted

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


@register_dataset("frames")
class FramesDataset(QwenVideoDataset):
    """Reads a folder of images, in the order of their names, as one video.

    The sample's path names the folder; ``frames_fps`` in the sample says how many images there
    are to a second (``vision.fps`` where it does not). Frames are taken as they are: none is
    dropped, so ``vision.fps`` and ``vision.max_frames`` do not thin them out.
    """

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = self.samples[i]
        folder = sample["__video_uri"]
        images = self.images_of(Path(folder))
        fps = float(sample.get("frames_fps") or self.vision_kwargs.get("fps") or 2.0)
        conversations = {
            part: self.with_vision_kwargs(messages, {})
            for part, messages in self.task.conversations(sample).items()
        }
        for message in itertools.chain.from_iterable(conversations.values()):
            if isinstance(message["content"], list):
                for content in message["content"]:
                    if content.get("video") == folder:
                        content.update(video=images, sample_fps=fps, raw_fps=fps)
        return item(sample, self.llm_inputs(conversations))

    @staticmethod
    def images_of(folder: Path) -> list[str]:
        """The images of a folder, sorted by name. Raises :class:`ValueError` for too few, and for
        a folder that may not be read."""
        permitted(str(folder))
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder of images")
        images = sorted(
            str(path) for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if len(images) < 2:
            raise ValueError(
                f"{folder} holds {len(images)} image(s), at least 2 are needed; known are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return images
