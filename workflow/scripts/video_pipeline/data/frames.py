"""The built-in dataset ``frames``."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.video.access import permitted

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


@register_dataset("frames")
class FramesDataset(QwenVideoDataset):
    """Reads images as one video.

    The sample's path names a folder (its images, in the order of their names) or a pattern such as
    ``clip7/*.png``, or is a list of images. ``frames_fps`` in the sample says how many images there
    are to a second (``vision.fps`` where it does not). Frames are taken as they are: none is
    dropped, so ``vision.fps`` and ``vision.max_frames`` do not thin them out.
    """

    sample_fields = ("frames_fps",)

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if part.get("video") != sample["__video_uri"]:
            return super().visual(part, sample)
        fps = sample.get("frames_fps")
        if fps is None:
            fps = self.vision_kwargs.get("fps", 2.0)
        elif isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0:
            raise ValueError(f"frames_fps: {fps!r:.80} is no number of images a second")
        fps = float(fps)
        images = self.images_of(part["video"])
        part = {**part, "video": images, "sample_fps": fps, "raw_fps": fps}
        return super().visual(part, {})

    @staticmethod
    def images_of(named: str | list[str]) -> list[str]:
        """The images of a folder, a pattern or a list, of the first two sorted by name. Raises
        :class:`ValueError` for too few, and for one that may not be read."""
        if isinstance(named, list):
            images = [permitted(image) for image in named]
        elif glob.has_magic(named) and not Path(named).exists():
            images = [permitted(image) for image in sorted(glob.glob(named, recursive=True))]
        else:
            folder = Path(permitted(named))
            if not folder.exists():
                raise ValueError(f"No such file or directory: {folder}")
            if not folder.is_dir():
                raise ValueError(f"{folder} is not a folder of images, and no pattern")
            images = sorted(map(str, folder.iterdir()))
        if not isinstance(named, list):
            images = [path for path in images if Path(path).suffix.lower() in IMAGE_SUFFIXES]
        if len(images) < 2:
            raise ValueError(
                f"{named} names {len(images)} image(s), at least 2 are needed; known are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return images
