"""All uses of ``qwen_vl_utils.vision_process`` beyond its documented functions.

No other module imports ``vision_process``. :func:`use_readers` replaces its readers of videos and
images, and makes sure that it calls the new ones: only they keep the limits of the section
``data``. ``tests/unit/test_compat_qwen.py`` has a test for each name.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from qwen_vl_utils import process_vision_info, vision_process

from video_pipeline.errors import UserError

TRIED = "0.0.14"
"""The versions of qwen-vl-utils that were tried, as in pyproject.toml."""

NAME = "video_pipeline"
"""The pipeline's reader among the backends of qwen-vl-utils."""

VideoReader = Callable[[dict[str, Any]], tuple[torch.Tensor, dict[str, Any], float]]
"""Takes a video item of a conversation; returns its frames, their metadata and their rate."""

ImageReader = Callable[[object], object]
"""Takes the value of an image item (a path, an address or an image); returns an image in RGB."""


def unsupported(reason: object) -> UserError:
    """The error for a qwen-vl-utils that this pipeline cannot use because of ``reason``."""
    return UserError(
        f"qwen-vl-utils {version('qwen-vl-utils')} is not supported: {reason}. Tried: {TRIED}. "
        f'Install it with: pip install "qwen-vl-utils=={TRIED}"'
    )


try:
    FRAME_FACTOR: int = vision_process.FRAME_FACTOR
    FPS_MAX_FRAMES: int = vision_process.FPS_MAX_FRAMES
    MODEL_SEQ_LEN: int = vision_process.MODEL_SEQ_LEN
    SPATIAL_MERGE_SIZE: int = vision_process.SPATIAL_MERGE_SIZE
    VIDEO_MIN_TOKEN_NUM: int = vision_process.VIDEO_MIN_TOKEN_NUM
    VIDEO_MAX_TOKEN_NUM: int = vision_process.VIDEO_MAX_TOKEN_NUM
    floor_by_factor: Callable[[float, int], int] = vision_process.floor_by_factor
    smart_nframes: Callable[..., int] = vision_process.smart_nframes
    smart_resize: Callable[..., tuple[int, int]] = vision_process.smart_resize
    _stock_fetch_image: Callable[..., Image.Image] = vision_process.fetch_image
except AttributeError as error:
    raise unsupported(error) from error


def use_readers(read_video: VideoReader, read_image: ImageReader) -> None:
    """Make ``process_vision_info`` read videos and images with these functions in this process.

    After an error of ``read_video`` it would log the error and try torchvision's reader, which no
    longer exists: now it raises that error. May be called again. Raises :class:`UserError` if this
    version reads with other functions.
    """
    global _read_video, _read_image
    _read_video, _read_image = read_video, read_image
    try:
        vision_process.VIDEO_READER_BACKENDS[NAME] = _video_backend
        vision_process.VIDEO_READER_BACKENDS["torchvision"] = _raise_again
        vision_process.logger.setLevel(logging.ERROR)
    except AttributeError as error:
        raise unsupported(error) from error
    vision_process.get_video_reader_backend = lambda: NAME
    vision_process.fetch_image = _fetch_image
    check_readers()


_read_video: VideoReader
_read_image: ImageReader


def _video_backend(ele: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    _stop_at_probe(ele["video"])
    return _read_video(ele)


def _fetch_image(ele: dict[str, Any], image_patch_size: int = 14) -> Image.Image:
    image = ele["image"] if "image" in ele else ele["image_url"]
    _stop_at_probe(image)
    return _stock_fetch_image({**ele, "image": _read_image(image)}, image_patch_size)


def _raise_again(ele: dict[str, Any]) -> tuple[torch.Tensor, dict[str, Any], float]:
    """Stand in for the torchvision reader, which ``fetch_video`` calls if a reader fails."""
    raise sys.exception() or unsupported("it reads videos with torchvision")


_PROBE = "video-pipeline: probe"
_PROBES: tuple[dict[str, Any], ...] = (
    {"type": "video", "video": _PROBE},
    {"type": "video", "video": [_PROBE]},
    {"type": "image", "image": _PROBE},
    {"type": "image_url", "image_url": _PROBE},
)


class _Reached(BaseException):
    """A reader was asked for the probe. No ``except Exception`` may hide it."""


def _stop_at_probe(media: object) -> None:
    if media is _PROBE:
        raise _Reached


@cache
def check_readers() -> None:
    """Make sure, once in a process, that each kind of item reaches the function for it: only these
    keep the limits of the section ``data``. Otherwise raise :class:`UserError`."""
    for item in _PROBES:
        cause = None
        try:
            process_vision_info([{"role": "user", "content": [item]}])
        except _Reached:
            continue
        except Exception as error:  # Another reader tried to open the probe.
            cause = error
        reason = f"it does not read {item['type']} items with the reader that it is given"
        raise unsupported(reason) from cause
