"""Clips with sound, and what the program ffmpeg hears in them."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

RATE = 16_000
"""Samples per second that the omni models of Qwen want."""

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the program ffmpeg")


def tones(*frequencies: int, rate: int, seconds: float) -> list[str]:
    """Arguments of ffmpeg: a tone in each channel."""
    channels = "|".join(f"0.4*sin({frequency}*2*PI*t)" for frequency in frequencies)
    return ["-f", "lavfi", "-i", f"aevalsrc={channels}:s={rate}:d={seconds}"]


def make(path: Path, *arguments: str, seconds: float = 3.0) -> Path:
    """A clip with the sound that the arguments of ffmpeg name."""
    picture = ["-f", "lavfi", "-i", f"testsrc=size=64x64:rate=8:duration={seconds}"]
    subprocess.run(["ffmpeg", "-v", "error", *picture, *arguments, path], check=True)
    return path


def as_ffmpeg_hears(path: Path) -> np.ndarray:
    """The mean of the channels; silence before the sound and in gaps."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-vn", "-f", "f32le"]
    command += ["-af", f"aresample={RATE}:async=1:first_pts=0", "-c:a", "pcm_f32le", "-"]
    samples = np.frombuffer(subprocess.check_output(command), np.float32)
    with av.open(str(path)) as container:
        channels = container.streams.audio[0].channels
    return samples.reshape(-1, channels).mean(axis=1)


def with_sound(path: Path, stamps: range | list[int], rate: int, first_frame: int = 0) -> Path:
    """Eight frames of an eighth of a second, the first at ``first_frame`` eighths, and sound at
    these times, counted in samples: 160 samples, each the number of its stamp / 160."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("ffv1", rate=8)
        picture.width = picture.height = 16
        picture.pix_fmt = "bgr0"
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
            frame.pts = first_frame + number
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for stamp in stamps:
            samples = np.full((1, 160), stamp // 160 % 10_000, np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, stamp, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
