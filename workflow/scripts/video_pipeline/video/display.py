"""How a video is shown: the orientation of its pictures, and the shape of their pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

NEARLY_SQUARE = Fraction(1, 100)
"""A pixel counts as square if its sides differ by no more than this part. Headers round, and
players do not show the difference either."""

WIDEST = 10
"""A pixel with one side more than this many times the other is a mistake in the file. The widest in
use are about 2.4 : 1."""


class Shown(NamedTuple):
    """A decoded picture, the right way up.

    Attributes:
        pixels: uint8 (height, width, RGB), as many as the file stores.
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
        """(height, width) in square pixels. One side is that of :attr:`stored_size`. The other
        grows, so that no line of pixels is lost."""
        return square_size(*self.stored_size, self.aspect)


def square_size(height: int, width: int, aspect: Fraction) -> tuple[int, int]:
    """(height, width) in square pixels of a picture whose pixels have the ``aspect``."""
    if aspect > 1:
        return height, round(width * aspect)
    return round(height / aspect), width


def pixel_aspect(ratio: Fraction | None) -> Fraction:
    """Width / height of a pixel, from the sample aspect ratio of a file: 1 if the file has none, an
    impossible one, or one that is nearly square."""
    if ratio is None or not Fraction(1, WIDEST) <= ratio <= WIDEST:
        return Fraction(1)
    if max(ratio, 1 / ratio) - 1 <= NEARLY_SQUARE:
        return Fraction(1)
    return ratio


class Orientation(NamedTuple):
    """The steps, in their order, that turn a stored picture into the shown one, as in ffmpeg.

    Attributes:
        degrees: Turned clockwise within its frame, whose corners become black. 0 for quarter turns,
            which the other three make; else those are False.
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
        """The orientation in a display matrix of FFmpeg (``libavutil/display.h``).

        Follows ``configure_input_video_filter`` in ffmpeg's ``ffmpeg_filter.c``.
        """
        # A stored point (x, y) is shown at (a x + c y, b x + d y).
        a, b, _, c, d = matrix[:5]
        if not math.hypot(a, c) or not math.hypot(b, d):
            return cls()
        degrees = round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360
        if degrees in (90, 270):
            return cls(transposed=True, mirrored=c < 0, upside_down=b < 0)
        if degrees in (0, 180):
            return cls(mirrored=a < 0, upside_down=d < 0)
        return cls(degrees) if degrees > 1 else cls()

    def turn(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn ``pixels`` (height, width, RGB) upright. FFmpeg turns by :attr:`degrees` before."""
        if self.transposed:
            pixels = pixels.transpose(1, 0, 2)
        if self.mirrored:
            pixels = pixels[:, ::-1]
        if self.upside_down:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)

    def turn_aspect(self, aspect: Fraction) -> Fraction:
        """The aspect of a shown pixel, from that of a stored one."""
        return 1 / aspect if self.transposed else aspect
