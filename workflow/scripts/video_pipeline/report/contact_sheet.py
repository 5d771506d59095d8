"""Contact sheets: what the model saw, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 4
"""Pixels between pictures."""

TEXT = 14
"""Height of the captions, in pixels."""

_INK, _PAPER = (230, 230, 230), (24, 24, 24)


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int = 5,
    width: int = 200,
    most: int = 40,
) -> Image.Image:
    """One picture with all ``pictures`` in rows, each ``width`` pixels wide with its caption under
    it. Of more than ``most`` it shows ``most``, evenly chosen.

    Raises :class:`ValueError` if there are none.
    """
    if not pictures:
        raise ValueError("there is no picture to show")
    count = min(most, len(pictures))
    chosen = [round(n * (len(pictures) - 1) / max(count - 1, 1)) for n in range(count)]
    thumbs = [_fitted(pictures[number], width) for number in chosen]
    columns = min(columns, count)
    height = max(thumb.height for thumb in thumbs) + TEXT + GAP
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT - 2)
    for place, (thumb, number) in enumerate(zip(thumbs, chosen, strict=True)):
        left = GAP + place % columns * (width + GAP)
        top = GAP + place // columns * (height + GAP)
        sheet.paste(thumb, (left, top))
        draw.text((left + 1, top + thumb.height + 1), captions[number], _INK, font)
    return sheet


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    return picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
