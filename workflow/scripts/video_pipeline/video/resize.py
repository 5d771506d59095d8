"""Computes the size of a video's frames for the model, and resizes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Any

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from video_pipeline.video import compat_qwen as qwen
from video_pipeline.video.display import Shown


def stack_frames(frames: Iterator[Shown], count: int, ele: dict[str, Any]) -> torch.Tensor:
    """Put all ``count`` frames into one tensor (uint8, count x 3 x height x width).

    They are resized one by one: those of a long video in full size would take gigabytes. The first
    frame decides the size, even if the size of the video changes.
    """
    first = next(frames)
    size = target_size(ele, count, first)
    stacked = torch.empty((count, 3, *size), dtype=torch.uint8)
    for index, shown in enumerate(chain([first], frames)):
        stacked[index] = resize_frame(shown.pixels.permute(2, 0, 1), size)
    return stacked


def target_size(ele: dict[str, Any], nframes: int, shown: Shown) -> tuple[int, int]:
    """(height, width) in which frames like ``shown`` leave the reader.

    ``native``: :func:`frame_size` of the size they are shown in. ``exact``: as many pixels as are
    stored. In either case ``ele`` tells ``fetch_video`` the former if it would compute another
    size, so that frames are resized once. Without the patch size that is not possible: then frames
    leave in the size they are shown in, or smaller by ``bound_pixels``.
    """
    if "image_patch_size" not in ele:
        return bounded_size(*shown.size, ele.get("bound_pixels"))
    size = frame_size(ele, nframes, *shown.size)
    leaving = size if ele.get("resize", "native") == "native" else shown.stored_size
    if frame_size(ele, nframes, *leaving) != size:
        ele.update(resized_height=size[0], resized_width=size[1])
    return leaving


def frame_size(ele: dict[str, Any], nframes: int, height: int, width: int) -> tuple[int, int]:
    """The size that ``qwen_vl_utils.fetch_video`` gives each frame of a video.

    This is the arithmetic of its second half, which is no function of its own (version 0.0.14).

    Args:
        ele: The video item of the messages, with ``image_patch_size`` (pixels).
        nframes: Number of sampled frames.

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: One side of the frame is more than 200 times the other.
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


def bounded_size(height: int, width: int, most: int | None) -> tuple[int, int]:
    """(height, width) in the same shape with at most ``most`` pixels; None for any number."""
    if most is None or height * width <= most:
        return height, width
    scale = math.sqrt(most / (height * width))
    return max(int(height * scale), 1), max(int(width * scale), 1)


def resize_frame(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a uint8 (3, height, width) frame with torch's uint8 kernel, like the Qwen video
    processors of transformers. It is about ten times as fast as resizing floats. On a GPU, which
    has no such kernel, :func:`resize_by_products` gives the same pixels."""
    if frame.is_cuda:
        return resize_by_products(frame, size)
    resized: torch.Tensor = resize(frame, list(size), InterpolationMode.BICUBIC, antialias=True)
    return resized


def resize_by_products(frame: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize a frame like torch's uint8 kernel, to the last bit, by products of matrices: first the
    rows are resized and rounded, then the columns."""
    height, width = size
    pixels = frame.float()
    if width != pixels.shape[2]:
        pixels = _resize_rows(pixels, width)
    if height != pixels.shape[1]:
        pixels = _resize_rows(pixels.transpose(1, 2), height).transpose(1, 2)
    return pixels.to(torch.uint8)


def _resize_rows(pixels: torch.Tensor, target: int) -> torch.Tensor:
    weights, bits = _weights(pixels.shape[-1], target, pixels.device)
    sums = pixels @ weights
    total = sums[..., :target].int() * 256 + sums[..., target:].int()
    return (total + (1 << bits - 1) >> bits).clamp_(0, 255).float()


@lru_cache(maxsize=8)
def _weights(source: int, target: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The share of each of ``source`` pixels in each of ``target`` pixels.

    Returns:
        Whole numbers of 16 bits, rounded as in torch's ``UpSampleKernel.cpp``, and the number of
        bits after the point. The upper bytes (source x target) stand beside the lower ones, so that
        float32, and TF32 too, adds up all products without an error.
    """
    scale = source / target
    stretch = max(scale, 1.0)
    centers = scale * (torch.arange(target, dtype=torch.float64) + 0.5)
    first = (centers - 2 * stretch + 0.5).long().clamp_(min=0)
    last = (centers + 2 * stretch + 0.5).long().clamp_(max=source)
    places = torch.arange(source, dtype=torch.float64)[:, None]
    far = ((places - centers + 0.5) / stretch).abs()
    weights = torch.where(
        far < 1, (1.5 * far - 2.5) * far * far + 1, ((2.5 - 0.5 * far) * far - 4) * far + 2
    )
    is_near = (far < 2) & (places >= first) & (places < last)
    weights = torch.where(is_near, weights, 0.0)
    weights /= weights.sum(0)
    most, bits = weights.max().item(), 0
    while bits < 22 and int(0.5 + most * (2 << bits)) < 1 << 15:
        bits += 1
    weights *= 1 << bits
    whole = (weights + weights.sign() * 0.5).trunc().long()
    upper = whole >> 8
    return torch.cat((upper, whole - upper * 256), 1).float().to(device), bits
