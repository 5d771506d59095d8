"""Decoding with torchcodec, where it loads: it needs FFmpeg's shared libraries from the system."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch

from video_pipeline.video.container import Video

_PROBED_BYTES = 1 << 20
"""How much of a file FFmpeg looks at, at most, to guess its format (PROBE_BUF_MAX)."""

_PLAYLIST = re.compile(
    rb"#EXTM3U|ffconcat|<MPD|<CompositionPlaylist|# VobSub|c=IN IP", re.IGNORECASE
)
"""How files start, or what they hold, that FFmpeg takes for a list of other files."""


@lru_cache(maxsize=1)
def is_available() -> bool:
    """Whether torchcodec loads in this environment."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def decode(video: Video, positions: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Like :func:`video_pipeline.video.decode_pyav.decode`; ends early where torchcodec fails.

    torchcodec cannot be told which formats to open, and its FFmpeg may take a file for another one
    than PyAV's did. So it is not given a file that could pass for a playlist.
    """
    with open(video.url.removeprefix("file:"), "rb") as file:
        if _PLAYLIST.search(file.read(_PROBED_BYTES)):
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
        for position in positions:
            frame = decoder.get_frame_at(position)
            yield round(frame.pts_seconds / video.time_base), frame.data
    except RuntimeError:
        return
