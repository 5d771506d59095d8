"""Contact sheets: the pictures that the model saw, in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from video_pipeline.data.model_pictures import Picture

GAP = 4
"""Pixels between pictures."""

TEXT = 14
"""Height of the captions, in pixels."""

_INK, _PAPER = (230, 230, 230), (24, 24, 24)


def contact_sheet(
    pictures: Sequence[Picture], *, columns: int = 5, width: int = 200, most: int = 40
) -> Image.Image:
    """One picture with all ``pictures`` in rows, each with its caption under it.

    Args:
        pictures: The pictures.
        columns: Pictures in a row.
        width: Width of each picture, in pixels.
        most: Of more pictures than this, only so many are shown, evenly chosen.

    Raises:
        ValueError: There are no pictures.
    """
    if not pictures:
        raise ValueError("there is no picture to show")
    count = min(most, len(pictures))
    chosen = [pictures[round(n * (len(pictures) - 1) / max(count - 1, 1))] for n in range(count)]
    thumbs = [_fitted(picture.image, width) for picture in chosen]
    columns = min(columns, count)
    height = max(thumb.height for thumb in thumbs) + TEXT + GAP
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT - 2)
    for place, (picture, thumb) in enumerate(zip(chosen, thumbs, strict=True)):
        left = GAP + place % columns * (width + GAP)
        top = GAP + place // columns * (height + GAP)
        sheet.paste(thumb, (left, top))
        draw.text((left + 1, top + thumb.height + 1), picture.caption, _INK, font)
    return sheet


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    return picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
