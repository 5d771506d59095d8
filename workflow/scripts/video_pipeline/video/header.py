"""Reads the header of a video, and not all of its packets."""

from __future__ import annotations

from dataclasses import dataclass

import av

from video_pipeline.video.decode_pyav import orientation_of
from video_pipeline.video.demuxer import Demuxer
from video_pipeline.video.display import square_size
from video_pipeline.video.errors import VideoReadError


@dataclass(frozen=True)
class Header:
    """What the header of a video says; None where it says nothing, or was not asked.

    Attributes:
        duration: Seconds.
        fps: Frames per second, on average.
        codec: FFmpeg's name of it.
        width: Pixels, as the video is shown: upright, and in square pixels.
        height: Likewise.
    """

    duration: float | None
    fps: float | None
    codec: str
    width: int | None = None
    height: int | None = None


def read_header(uri: str, *, with_size: bool) -> Header:
    """Read the header of a video.

    Args:
        uri: Where the video lies. Only parts of a remote video are fetched.
        with_size: Whether to find out ``width`` and ``height``, too. That takes a decoded frame:
            only it tells how the picture is turned.

    Raises:
        VideoReadError: It cannot be read, or may not.
    """
    with Demuxer(uri, in_parts=True) as video:
        stream, length = video.stream, video.container.duration
        duration = length / av.time_base if length else None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        rate, codec = stream.average_rate, video.decoder.codec.canonical_name
        fps = float(rate) if rate else None  # Before a frame is decoded: that opens the file again.
        height, width = _shown_size(video) if with_size else (None, None)
        return Header(duration, fps, codec, width, height)


def _shown_size(video: Demuxer) -> tuple[int, int]:
    frame = next(video.decode_all(), None)
    if frame is None:
        raise VideoReadError(video.damage or "no frame could be decoded")
    orientation, size = orientation_of(frame), (frame.height, frame.width)
    aspect = orientation.turn_aspect(video.pixel_aspect)
    return square_size(*(size[::-1] if orientation.transposed else size), aspect)
