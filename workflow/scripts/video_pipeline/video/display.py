"""How a video is shown: which way up its pictures are, and how wide their pixels are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch

NEARLY_SQUARE = Fraction(1, 100)
"""A pixel that is wider than high, or higher than wide, by no more than this part counts as square:
rounding in headers, which a player does not show either."""

WIDEST = 10
"""A pixel that is so many times as wide as high, or as high as wide, is a mistake in the file. The
widest in use are about 2.4 : 1."""


class Shown(NamedTuple):
    """A decoded picture, the right way up.

    Attributes:
        pixels: uint8, (height, width, RGB): as many as are stored.
        aspect: Width of a pixel / its height.
    """

    pixels: torch.Tensor
    aspect: Fraction

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the file."""
        height, width, _ = self.pixels.shape
        return height, width

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in square pixels. One side is that of :attr:`stored_size`, the other
        grows, so that no line of pixels is lost."""
        height, width = self.stored_size
        if self.aspect > 1:
            return height, round(width * self.aspect)
        return round(height / self.aspect), width


def pixel_aspect(ratio: Fraction | None) -> Fraction:
    """Width / height of a pixel, from the sample aspect ratio that a file tells: 1 where it tells
    none, an impossible one, or one that makes no difference to speak of."""
    if ratio is None or not Fraction(1, WIDEST) <= ratio <= WIDEST:
        return Fraction(1)
    if max(ratio, 1 / ratio) - 1 <= NEARLY_SQUARE:
        return Fraction(1)
    return ratio


class Orientation(NamedTuple):
    """What is done to a stored picture to show it, in this order, as ffmpeg does it.

    Attributes:
        degrees: Turned clockwise within its frame, whose corners become black: only where it is
            no quarter turn, so that the other three are False.
        transposed: Rows become columns.
        mirrored: Left and right change places.
        upside_down: Top and bottom change places.
    """

    degrees: int = 0
    transposed: bool = False
    mirrored: bool = False
    upside_down: bool = False

    @classmethod
    def of(cls, matrix: Sequence[int]) -> Orientation:
        """The orientation that a display matrix of FFmpeg tells (``libavutil/display.h``).

        Follows ``configure_input_video_filter`` in ffmpeg's ``ffmpeg_filter.c``.
        """
        a, b, _, c, d = matrix[:5]  # a stored point (x, y) is shown at (a x + c y, b x + d y)
        if not math.hypot(a, c) or not math.hypot(b, d):
            return cls()
        degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
        if degrees in (90, 270):
            return cls(transposed=True, mirrored=c < 0, upside_down=b < 0)
        if degrees in (0, 180):
            return cls(mirrored=a < 0, upside_down=d < 0)
        return cls(degrees) if degrees > 1 else cls()

    def turn(self, pixels: np.ndarray) -> np.ndarray:
        """``pixels`` (height, width, RGB) the right way up, but for :attr:`degrees`: those are
        FFmpeg's to turn."""
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        if self.mirrored:
            pixels = pixels[:, ::-1]
        if self.upside_down:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)

    def turn_aspect(self, aspect: Fraction) -> Fraction:
        """``aspect`` of a stored pixel as it is shown."""
        return 1 / aspect if self.transposed else aspect
