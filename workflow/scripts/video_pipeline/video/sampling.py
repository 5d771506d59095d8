"""Chooses the frames of a video to read, and makes their metadata."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch

from video_pipeline.video import compat_qwen as qwen
from video_pipeline.video.container import Video
from video_pipeline.video.errors import VideoReadError

Choose = Callable[[int, float, float], list[int]]
"""Chooses frames, numbered from 0, of a video with so many frames, frames a second, and seconds."""

_UNKNOWN_FPS = 24.0
"""The rate of a single frame whose file does not say how long it lasts; that of transformers."""


def sample_frames(ele: dict[str, Any], video: Video) -> tuple[list[int], dict[str, Any], float]:
    """Choose the frames to read, as qwen-vl-utils' own readers do.

    Args:
        ele: The video item of a conversation, see :mod:`video_pipeline.video.reader`.

    Returns:
        Positions of the frames in ``video``, ascending; the metadata of a video that consists of
        them; and the frames per second that they were sampled at.

    Raises:
        VideoReadError: Not enough frames can be sampled.
    """
    total, fps = len(video.stamps), video.fps
    if total < qwen.FRAME_FACTOR:
        raise VideoReadError(
            f"video has {total} frame{'' if total == 1 else 's'}, at least "
            f"{qwen.FRAME_FACTOR} are needed"
        )
    first, last = _segment(ele, video)
    # One frame that stays on the screen is shown twice.
    count = max(last - first + 1, qwen.FRAME_FACTOR)
    try:
        if ele.get("keyframes"):
            positions = _keyframes(ele, video, first, last) or [first, last]
        else:
            positions = _evenly(ele, video, first, last, count)
    except (AssertionError, ValueError) as error:
        raise VideoReadError(f"cannot sample {total} frames at {fps:g} fps: {error}") from error
    metadata, rate = _metadata(video, positions, count)
    return positions, metadata, rate


def _metadata(video: Video, positions: list[int], count: int) -> tuple[dict[str, Any], float]:
    """Metadata and rate of the frames at ``positions``, of ``count`` frames."""
    if not video.is_even:
        return _metadata_by_time(video, positions)
    metadata = {"fps": video.fps, "frames_indices": positions, "total_num_frames": count}
    return metadata, len(positions) / count * video.fps


def chosen_frames(
    ele: dict[str, Any], video: Video, choose: Choose
) -> tuple[list[int], dict[str, Any], float]:
    """The frames that ``choose`` takes. For ``choose`` the frames of any video are evenly spaced,
    as many as are stored; each is the picture that is on the screen at its time.

    Args, returns and raises as :func:`sample_frames`; the positions are in the order of ``choose``.
    """
    first, last = _segment(ele, video)
    count = last - first + 1
    if ele.get("keyframes"):
        positions = _keyframes(ele, video, first, last) or [first]
        metadata, rate = _metadata(video, positions, count)
        return positions, metadata, rate
    if video.is_even:
        fps = video.exact_fps or _UNKNOWN_FPS
        numbers = choose(count, fps, count / fps)
        before, positions = first, [first + number for number in numbers]
    else:
        stamps, ticks = video.stamps, video.stamp_after(last) - video.stamps[first]
        fps = count / float(ticks * video.time_base)
        numbers = choose(count, fps, count / fps)
        before = round(float((stamps[first] - stamps[0]) * video.time_base) * fps)
        times = [stamps[first] + number * ticks / count for number in numbers]
        positions = [video.position_shown_at(time) for time in times]
    metadata = {
        "fps": fps,
        "frames_indices": [before + number for number in numbers],
        "total_num_frames": count,
        "duration": count / fps,
    }
    return positions, metadata, len(numbers) / count * fps


def _segment(ele: dict[str, Any], video: Video) -> tuple[int, int]:
    """Positions of the first and the last frame of the segment that ``ele`` names."""
    for key in ("video_start", "video_end"):
        if not isinstance(ele.get(key, 0.0), Real | None):
            raise VideoReadError(f"{key}: {ele[key]!r} is not a number of seconds")
    half_open = bool(ele.get("half_open"))
    return video.segment(ele.get("video_start"), ele.get("video_end"), half_open=half_open)


def _evenly(ele: dict[str, Any], video: Video, first: int, last: int, count: int) -> list[int]:
    """As many frames from ``first`` to ``last`` as qwen-vl-utils takes. A video of even spacing is
    sampled by the number of the frame, as qwen-vl-utils does it; any other by time: the frames that
    are on the screen at evenly spaced times."""
    stamps = video.stamps
    if video.is_even:
        nframes = qwen.smart_nframes(ele, total_frames=count, video_fps=video.fps)
        return _as_ints(torch.linspace(first, last, nframes))
    ticks = video.stamp_after(last) - stamps[first]
    fps = count / float(ticks * video.time_base)
    nframes = qwen.smart_nframes(ele, total_frames=count, video_fps=fps)
    times = torch.linspace(stamps[first], stamps[last], nframes, dtype=torch.float64)
    return [video.position_shown_at(time) for time in times.tolist()]


def _metadata_by_time(video: Video, positions: list[int]) -> tuple[dict[str, Any], float]:
    """Metadata and rate of a video of uneven spacing. They count in units of its time base, so that
    an index divided by ``fps`` is the exact time of the picture."""
    stamps = [video.stamps[position] for position in positions]
    until = video.stamp_after(positions[-1])
    ticks = (stamps[-1] if stamps[-1] > stamps[0] else until) - stamps[0]
    # The number of sampling intervals between the first and the last picture.
    steps = max(len(positions) - 1, 1)
    fps = float(1 / video.time_base)
    metadata = {
        "fps": fps,
        "frames_indices": [stamp - video.stamps[0] for stamp in stamps],
        "total_num_frames": round(ticks * len(positions) / steps),
        "duration": float(until - stamps[0]) / fps,
    }
    return metadata, steps * fps / ticks


def _keyframes(ele: dict[str, Any], video: Video, first: int, last: int) -> list[int]:
    """Positions of the key frames from ``first`` to ``last``, an even number. If there are fewer
    than two, the last frame is taken, too. Empty if that is the only frame."""
    keyframes = [position for position in video.keyframes if first <= position <= last]
    if len(keyframes) < qwen.FRAME_FACTOR:
        keyframes = sorted({*(keyframes or [first]), last})
    most = min(ele.get("max_frames", qwen.FPS_MAX_FRAMES), len(keyframes))
    chosen = torch.linspace(0, len(keyframes) - 1, qwen.floor_by_factor(most, qwen.FRAME_FACTOR))
    return [keyframes[index] for index in _as_ints(chosen)]


def _as_ints(values: torch.Tensor) -> list[int]:
    rounded: list[int] = values.round().long().tolist()
    return rounded
