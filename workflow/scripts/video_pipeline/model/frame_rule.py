"""Samples frames of a video by the rule of the model's own video processor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from video_pipeline.model.processor import SIMULATED_MODEL

logger = logging.getLogger(__name__)


@cache
def video_processor(model: str) -> Any:
    """The video processor of ``model``, loaded once in a process; None if it has none."""
    if model == SIMULATED_MODEL:
        return None
    from transformers import AutoVideoProcessor

    try:
        return AutoVideoProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            model, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        logger.warning(
            "%s has no video processor that transformers knows (%s): frames are sampled evenly, "
            "at vision.fps or vision.nframes",
            model,
            str(error).partition("\n")[0],
        )
        return None


def sampled_frames(
    model: str,
    item: Mapping[str, Any],
    total: int,
    fps: float,
    duration: float,
    *,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> list[int]:
    """The numbers of the frames that the family of ``model`` samples from a video.

    Args:
        item: The video item of the messages. ``nframes`` and ``max_frames`` thin the frames out;
            ``fps`` and ``nframes`` also decide how many there are if the family does not.
        total: Frames of the video.
        fps: Its frames a second.
        duration: Its length in seconds.
        settings: The user's own settings for the processor; they replace those of the family.

    Returns:
        At least one number below ``total``; a family may want a frame twice, or in another order.
    """
    processor = video_processor(model)
    per_patch = getattr(processor, "temporal_patch_size", None) or 1
    indices = _by_rule(processor, item, total, fps, duration, settings)
    frames = [index for index in indices if index < total] or [(total - 1) // 2]
    if len(frames) < per_patch:  # Some processors refuse that, so the last frame is repeated.
        return frames + frames[-1:] * (per_patch - len(frames))
    most = item.get("nframes") or item.get("max_frames") or len(frames)
    if len(frames) <= most:
        return frames
    count = max(most - most % per_patch, 1)
    last = len(frames) - 1
    return [frames[round(place * last / max(count - 1, 1))] for place in range(count)]


_RATES = ("fps", "num_frames")
"""The settings of a processor that say how many frames there are."""


def has_own_rate(model: str) -> bool:
    """Whether the family of ``model`` decides how many frames of a video there are."""
    return _says_how_many(_settings(video_processor(model)))


def _settings(processor: Any) -> dict[str, Any]:
    """The settings of a video processor, by the names that its rule knows."""
    if processor is None:
        return dict.fromkeys(_RATES)
    return {name: getattr(processor, name, None) for name in processor.valid_kwargs.__annotations__}


def _says_how_many(settings: Mapping[str, Any]) -> bool:
    return any(settings.get(name) is not None for name in _RATES)


def _by_rule(
    processor: Any,
    item: Mapping[str, Any],
    total: int,
    fps: float,
    duration: float,
    of_user: Mapping[str, Any],
) -> list[int]:
    """The frames that transformers' ``preprocess`` would sample; none if the video is too short."""
    from transformers.video_utils import VideoMetadata, default_sample_indices_fn

    metadata = VideoMetadata(
        total_num_frames=total, fps=fps, duration=duration, video_backend="torchcodec"
    )
    settings = _settings(processor)
    if _says_how_many(of_user):
        settings.update(dict.fromkeys(_RATES))  # Rules refuse both.
    settings.update({name: value for name, value in of_user.items() if name in settings})
    if not _says_how_many(settings):
        name, key = ("num_frames", "nframes") if "nframes" in item else ("fps", "fps")
        settings[name] = item[key]
    if settings.get("num_frames") is not None:
        settings["num_frames"] = min(settings["num_frames"], total)  # Some rules refuse more.
    rule = default_sample_indices_fn if processor is None else processor.sample_frames
    try:
        return [int(index) for index in rule(metadata=metadata, **settings)]
    except ZeroDivisionError:  # Several rules divide by the number of frames.
        return []
