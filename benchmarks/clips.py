"""Clips that decode like filmed ones: textured shots under a moving camera, with grain.

The clips of :mod:`video_pipeline.testing.clips` are smooth and compress to almost nothing, which
would make decoding look cheap. These are encoded as most H.264 in the world is: x264, preset
medium, CRF 23, key frames at cuts and every 250 frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image

FPS = 25
SHOT_SECONDS = 7.0
GRAIN = 2.5
"""Standard deviation of the sensor noise, of 255."""


def write_natural_clip(path: Path, width: int, height: int, seconds: float, seed: int) -> Path:
    """Encode a clip unless it is there already; its name should say how it is encoded."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "medium", "crf": "23"}
        for picture in _pictures(width, height, round(seconds * FPS), seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    part.replace(path)
    return path


def _pictures(width: int, height: int, count: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    noise = random.normal(0, GRAIN, (height + 64, width + 64, 1)).round().astype(np.int16)
    shot_length = round(SHOT_SECONDS * FPS)
    for number in range(count):
        if number % shot_length == 0:
            scene = _Scene(width, height, random)
        picture = scene.picture(number % shot_length / FPS)
        y, x = random.integers(0, 64, 2)
        picture = picture + noise[y : y + height, x : x + width]
        yield np.clip(picture, 0, 255).astype(np.uint8)


class _Scene:
    """One shot: a background that the camera pans and zooms over, and three things that move."""

    def __init__(self, width: int, height: int, random: np.random.Generator) -> None:
        self._width, self._height = width, height
        self._background = _texture(width * 3 // 2, height * 3 // 2, random)
        side = height // 4
        self._things = [_texture(side, side, random) for _ in range(3)]
        self._pan = random.uniform(-40, 40, 2)
        self._zoom = random.uniform(-0.02, 0.02)
        self._turn = random.uniform(-0.01, 0.01)
        self._paths = random.uniform(0.2, 1.2, (3, 4))

    def picture(self, seconds: float) -> np.ndarray:
        """What the camera sees: int16, (height, width, 3)."""
        width, height = self._width, self._height
        scale, angle = 1 + self._zoom * seconds, self._turn * seconds
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        x = width / 4 + self._pan[0] * seconds / 4 + 4 * math.sin(2 * seconds)
        y = height / 4 + self._pan[1] * seconds / 4
        view = self._background.transform(
            (width, height),
            Image.Transform.AFFINE,
            (cos, -sin, x, sin, cos, y),
            Image.Resampling.BILINEAR,
        )
        for thing, (across, down, start, sway) in zip(self._things, self._paths, strict=True):
            left = (width - thing.width) * (0.5 + 0.5 * math.sin(across * seconds + 5 * start))
            top = (height - thing.height) * (0.5 + 0.5 * math.sin(down * seconds + 5 * sway))
            view.paste(thing, (round(left), round(top)))
        return np.asarray(view).astype(np.int16)


def _texture(width: int, height: int, random: np.random.Generator) -> Image.Image:
    """Noise with the spectrum of photographs: amplitude falls with 1 / frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    channels = []
    for _ in range(3):
        phases = np.exp(2j * np.pi * random.random(frequency.shape))
        channels.append(np.fft.irfft2(phases / frequency**1.1, (height, width)))
    luma, *chroma = (channel / channel.std() for channel in channels)
    colours = [luma + 0.3 * c for c in (chroma[0], -chroma[0] - chroma[1], chroma[1])]
    pixels = np.stack([128 + 45 * colour for colour in colours], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
