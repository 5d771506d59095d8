"""Converts pictures to RGB with torch, to the last bit as FFmpeg's swscale does it on x86."""

from __future__ import annotations

from collections.abc import Sequence

import torch

BT601 = (104597, 132201, 25675, 53279)

MATRICES = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    2: BT601,  # The file does not say.
    4: (104448, 132798, 24759, 53109),  # FCC
    5: BT601,
    6: BT601,
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}
"""By FFmpeg's number of the colour space, in 65536ths: how much of V goes into red, how much of U
into blue, and how much of U and V green loses. From swscale's ``ff_yuv2rgb_coeffs``."""


def coefficients_of(matrix: Sequence[int], is_full: bool) -> tuple[int, ...]:
    """The coefficients of a colour space of ``MATRICES``; ``is_full``: full range, 0 to 255.

    Returns:
        ``yCoeff``, ``yOffset``, ``vrCoeff``, ``ubCoeff``, ``ugCoeff`` and ``vgCoeff`` of
        swscale's ``ff_yuv2rgb_c_init_tables``. The offset is in eighths, the others are in 8192ths.
    """
    v_red, u_blue, u_green, v_green = matrix
    colours = [v_red, u_blue, -u_green, -v_green]
    luma, black = 1 << 16, 0
    if is_full:
        colours = [int(colour * 224 / 255) for colour in colours]
    else:
        luma, black = luma * 255 // 219, 16
    luma, *colours = [(coefficient + 4) >> 3 for coefficient in (luma, *colours)]
    return luma, black * 8, *colours


def nv12_to_rgb(picture: torch.Tensor, coefficients: Sequence[int]) -> torch.Tensor:
    """Convert a picture.

    The arithmetic is that of swscale's ``yuv_2_rgb.asm``: it keeps the upper half of products of 16
    bits, and computes one colour for each 2 x 2 pixels.

    Args:
        picture: uint8 (height x 3 / 2, width), in NV12.
        coefficients: From :func:`coefficients_of`.

    Returns:
        uint8 (RGB, height, width).
    """
    luma, black, v_red, u_blue, u_green, v_green = coefficients
    rows, width = picture.shape
    height = rows // 3 * 2
    brightness = (picture[:height].int() * 8 - black) * luma >> 16
    u, v = ((picture[height:].int() - 128) * 8).view(height // 2, width // 2, 2).unbind(-1)
    green = (u * u_green >> 16) + (v * v_green >> 16)
    colour = torch.stack((v * v_red >> 16, green, u * u_blue >> 16))
    pixels = brightness.view(height // 2, 2, width // 2, 2) + colour[:, :, None, :, None]
    return pixels.clamp_(0, 255).to(torch.uint8).view(3, height, width)
