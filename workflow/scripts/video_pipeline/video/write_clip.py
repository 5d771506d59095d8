"""Writes a made-up clip in any codec with PyAV: no ffmpeg program is needed."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

_QUICK = {
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "veryfast", "x265-params": "log-level=error"},
}


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    width: int = 320,
    height: int = 240,
    fps: int | Fraction = 24,
    seconds: float = 2.0,
    seed: int = 0,
    pixel_format: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode a short moving picture and return its path.

    The suffix of ``path`` names the container. The same arguments give the same file, and each
    ``seed`` gives pictures of its own: a background whose colours drift, under a square that
    crosses it. The file appears complete or not at all, and an existing file is replaced.

    Args:
        codec: An encoder of PyAV, such as libx264, libx265, libvpx-vp9, libsvtav1, mpeg4 or ffv1.
        width, height: The size of the coded picture in pixels; even for most codecs.
        fps: Frames per second, such as 25 or Fraction(30000, 1001).
        seconds: The length; at least one frame is written.
        pixel_format: FFmpeg's name, such as yuv420p10le for 10 bits a sample.
        rotation: Degrees, a multiple of 90, by which a player turns the picture counter-clockwise.
        options: Options of the encoder, such as {"crf": "40"}; quick ones by default.

    Raises:
        av.error.FFmpegError: The encoder or the container does not accept the arguments.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        with av.open(str(temporary), "w", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(
                codec, rate=fps, options=_QUICK.get(codec, {}) | (options or {})
            )
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            stream.codec_context.thread_count = 1  # The bytes are the same on any machine.
            if rotation:
                stream.set_display_rotation(rotation)
            for picture in _pictures(width, height, max(1, round(fps * seconds)), seed):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _pictures(
    width: int, height: int, count: int, seed: int
) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Yield ``count`` uint8 arrays of shape [height, width, 3]."""
    generator = np.random.default_rng(seed)
    waves = generator.uniform(0.5, 3.0, size=(3, 2))  # per colour: waves across and down
    speed = generator.integers(-16, 17, size=3)  # per colour: 256ths of a wave that pass a frame
    level = generator.uniform(60, 195, size=3)
    square_colour = generator.integers(0, 256, size=3)
    step = generator.integers(2, 7, size=2)
    side = min(width, height) // 4
    across, down = np.linspace(0, 256, width), np.linspace(0, 256, height)[:, None]
    # Phases in 256ths, so that uint8 wraps them and a table of 256 entries replaces the sine.
    phases = [(a * across + d * down).astype(np.int64).astype(np.uint8) for a, d in waves]
    tables = (level + 60 * np.sin(np.arange(256)[:, None] * np.pi / 128)).astype(np.uint8).T
    for number in range(count):
        shifts = (speed * number % 256).astype(np.uint8)
        colours = zip(tables, phases, shifts, strict=True)
        picture = np.stack([table[phase + shift] for table, phase, shift in colours], axis=-1)
        x = number * step[0] % (width - side)
        y = number * step[1] % (height - side)
        picture[y : y + side, x : x + side] = square_colour
        yield picture
