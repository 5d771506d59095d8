"""The size that a video's frames are given, and the resize itself."""

from __future__ import annotations

from typing import Any

import torch
from qwen_vl_utils import vision_process as qwen
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize


def frame_size(ele: dict[str, Any], nframes: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) that ``qwen_vl_utils.fetch_video`` gives each of ``nframes`` frames of
    ``height`` x ``width`` pixels.

    The arithmetic of its second half, which it does not offer as a function (version 0.0.14).

    Args:
        ele: the video item of the messages, with ``image_patch_size`` (pixels).

    Raises:
        ValueError: the frame is more than 200 times as long as wide.
    """
    factor = ele["image_patch_size"] * qwen.SPATIAL_MERGE_SIZE
    if "resized_height" in ele and "resized_width" in ele:
        return qwen.smart_resize(ele["resized_height"], ele["resized_width"], factor=factor)
    token = factor * factor
    min_pixels = ele.get("min_pixels", qwen.VIDEO_MIN_TOKEN_NUM * token)
    total_pixels = ele.get("total_pixels", qwen.MODEL_SEQ_LEN * token * 0.9)
    limit = max(
        min(qwen.VIDEO_MAX_TOKEN_NUM * token, total_pixels / nframes * qwen.FRAME_FACTOR),
        int(min_pixels * 1.05),
    )
    return qwen.smart_resize(
        height,
        width,
        factor=factor,
        min_pixels=min_pixels,
        max_pixels=min(ele.get("max_pixels", limit), limit),
    )


def resize_frame(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a uint8 (3, height, width) frame with torch's uint8 kernel: what the Qwen video
    processors of transformers do, and about ten times as fast as the way over floats."""
    return resize(frame, list(size), InterpolationMode.BICUBIC, antialias=True)
