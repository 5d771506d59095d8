"""Decoding with torchcodec, where it loads: it needs FFmpeg's shared libraries from the system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from video_pipeline.video.container import Video
from video_pipeline.video.display import Shown, pixel_aspect
from video_pipeline.video.no_video import may_be_a_playlist


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether torchcodec loads in this environment."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def decode(video: Video, positions: Sequence[int]) -> Iterator[tuple[int, Shown]]:
    """Like :func:`video_pipeline.video.decode_pyav.decode`; ends early where torchcodec fails.

    torchcodec cannot be told which formats to open, and its FFmpeg may take a file for another one
    than PyAV's did. So it is not given a file that could pass for a playlist.
    """
    if may_be_a_playlist(video.url.removeprefix("file:")):
        return
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(
            video.url,
            stream_index=video.stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
        )
        index = decoder.metadata
        if (index.num_frames, index.begin_stream_seconds, index.end_stream_seconds) != (
            len(video.stamps),
            video.begin,
            video.end,
        ):
            return  # it takes decoding times for display times in AVI with B-frames, for one
        if index.rotation is not None:
            return  # it knows the angle of a display matrix, not whether it mirrors
        aspect = pixel_aspect(video.stream.sample_aspect_ratio)
        for position in positions:
            frame = decoder.get_frame_at(position)
            yield round(frame.pts_seconds / video.time_base), Shown(frame.data, aspect)
    except (RuntimeError, ValueError):  # the latter where its FFmpeg knows fewer streams
        return
