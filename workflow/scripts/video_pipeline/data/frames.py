"""The built-in dataset ``frames``."""

from __future__ import annotations

import glob
import logging
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from video_pipeline.common.printable import printable
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.storage.opening import local_path
from video_pipeline.video.access import permitted

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})


@register_dataset("frames")
class FramesDataset(QwenVideoDataset):
    """Reads images as one video.

    The sample's path names a folder or a pattern such as ``clip7/*.png``, whose images are taken in
    natural order (``2.png`` before ``10.png``), or is a list of images, which stays as it is.
    ``frames_fps`` of the sample is the number of images a second; without it ``vision.fps`` is. No
    frame is dropped: ``vision.fps`` and ``vision.max_frames`` do not thin them out.
    """

    sample_fields = ("frames_fps",)

    _order_was_logged = False

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

    @classmethod
    def images_of(cls, source: str | list[str]) -> list[str]:
        """The images of a list, or of a folder or a pattern in natural order. Raises
        :class:`ValueError` if there are too few, or a local image may not be read; other addresses
        are checked when they are opened."""
        if isinstance(source, list):
            images = [local_path(image) or image for image in source]
        else:
            paths = [path for path in _paths(source) if path.suffix.lower() in IMAGE_SUFFIXES]
            paths.sort(key=natural_order)
            cls._log_order(source, paths)
            images = [permitted(str(path)) for path in paths]
        if len(images) < 2:
            raise ValueError(
                f"{source} names {len(images)} image(s), at least 2 are needed; known are "
                f"{', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return images

    @classmethod
    def _log_order(cls, source: str, images: list[Path]) -> None:
        """Log, once in each process, that ``images`` are not in the order of characters."""
        swapped = next((pair for pair in pairwise(images) if str(pair[0]) > str(pair[1])), None)
        if swapped is None or cls._order_was_logged:
            return
        cls._order_was_logged = True
        logger.warning(
            "%s: frames are taken in natural order, %s before %s, not in the order of characters. "
            "Logged once; it applies to all samples",
            printable(source),
            printable(swapped[0].name),
            printable(swapped[1].name),
        )


def _paths(source: str) -> list[Path]:
    """The files in a folder, or those that a pattern matches."""
    if glob.has_magic(source) and not Path(source).exists():
        return [Path(path) for path in glob.glob(source, recursive=True)]
    folder = Path(permitted(source))
    if not folder.exists():
        raise ValueError(f"No such file or directory: {folder}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of images, and no pattern")
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """The key that sorts paths as people do: folder by folder, numbers by their value, letters
    without regard to case. Equal keys follow the order of characters."""
    parts = (*path.parent.parts, path.stem, path.suffix)
    return [_with_numbers(part.casefold()) for part in parts], str(path)


def _with_numbers(text: str) -> list[str | int]:
    """``text`` in pieces: text and numbers in turn."""
    pieces = re.split(r"(\d+)", text)
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]
