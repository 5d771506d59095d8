"""What the header of a video says, without reading all of its packets."""

from __future__ import annotations

from typing import Any

import av

from video_pipeline.video.decode_pyav import orientation_of
from video_pipeline.video.demuxer import Demuxer
from video_pipeline.video.display import pixel_aspect, square_size
from video_pipeline.video.errors import VideoReadError


def read_header(uri: str, *, with_size: bool) -> dict[str, Any]:
    """What the header of a video says; None for what it does not say.

    Args:
        uri: Where the video lies; of a remote one, only parts are fetched.
        with_size: Whether to find out ``width`` and ``height``, too. That takes a decoded frame:
            only it tells how the picture is turned.

    Returns:
        ``duration`` (seconds), ``fps`` (frames per second on average), ``codec`` (FFmpeg's name),
        ``width`` and ``height`` (as it is shown, upright and in square pixels).

    Raises:
        VideoReadError: It cannot be read, or may not.
    """
    with Demuxer(uri, in_parts=True) as video:
        stream, length = video.stream, video.container.duration
        duration = length / av.time_base if length else None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        header: dict[str, Any] = {
            "duration": duration,
            "fps": float(stream.average_rate) if stream.average_rate else None,
            "codec": video.decoder.codec.canonical_name,
        }
        if with_size:
            header["height"], header["width"] = _shown_size(video)
        return header


def _shown_size(video: Demuxer) -> tuple[int, int]:
    frame = next(video.decode_all(), None)
    if frame is None:
        raise VideoReadError(video.damage or "no frame could be decoded")
    ratio = video.stream.sample_aspect_ratio or video.decoder.sample_aspect_ratio
    orientation, size = orientation_of(frame), (frame.height, frame.width)
    aspect = orientation.turn_aspect(pixel_aspect(ratio))
    return square_size(*(size[::-1] if orientation.transposed else size), aspect)
