"""Makes contact sheets: all pictures that the model saw, from a dataset's ``llm_input``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from video_pipeline.model.prompt import listed_media

GAP = 4
"""Pixels between pictures."""

TEXT = 14
"""Height of the captions, in pixels."""

_INK, _PAPER = (230, 230, 230), (24, 24, 24)


@dataclass(frozen=True)
class Picture:
    """A frame of a video, or an image.

    Attributes:
        image: The pixels, in the size that the model gets.
        seconds: The frame's time in its video; None for an image.
    """

    image: Image.Image
    seconds: float | None

    @property
    def caption(self) -> str:
        """The time and the size."""
        size = f"{self.image.width}x{self.image.height}"
        return size if self.seconds is None else f"{self.seconds:.2f} s  {size}"


def all_pictures(llm_inputs: Iterable[dict[str, Any]]) -> list[Picture]:
    """The pictures of a sample's conversations; those that show the same media share them."""
    by_media = {id(llm_input.get("multi_modal_data")): llm_input for llm_input in llm_inputs}
    return [picture for llm_input in by_media.values() for picture in pictures(llm_input)]


def pictures(llm_input: dict[str, Any]) -> list[Picture]:
    """All pictures in ``llm_input``, images first."""
    media = listed_media(llm_input)
    shown = [Picture(_image(image), None) for image in media.get("image", ())]
    for video in media.get("video", ()):
        frames, metadata = video if isinstance(video, tuple) else (video, {})
        metadata = metadata or {}
        indices, fps = metadata.get("frames_indices"), metadata.get("fps")
        for position, frame in enumerate(frames):
            index = indices[position] if indices is not None else position
            seconds = float(index) / fps if fps else None
            shown.append(Picture(_image(frame), seconds))
    return shown


def _image(frame: Any) -> Image.Image:
    """A frame as vLLM takes it: a tensor (3, h, w), an array (h, w, 3), or a picture already."""
    import torch  # Not above: the job that writes the report does not need it.

    if isinstance(frame, Image.Image):
        return frame
    if isinstance(frame, torch.Tensor):
        frame = frame.permute(1, 2, 0).numpy()
    return Image.fromarray(np.asarray(frame).astype(np.uint8))


def contact_sheet(
    pictures: Sequence[Picture], *, columns: int = 5, width: int = 200, most: int = 40
) -> Image.Image:
    """One picture with all ``pictures`` in rows, each with its caption under it.

    Args:
        columns: Pictures in a row.
        width: Width of each picture, in pixels.
        most: The most pictures that are shown; of more pictures, an even choice.

    Raises:
        ValueError: There are no pictures.
    """
    if not pictures:
        raise ValueError("there is no picture to show")
    count = min(most, len(pictures))
    chosen = [pictures[round(i * (len(pictures) - 1) / max(count - 1, 1))] for i in range(count)]
    thumbs = [_fitted(picture.image, width) for picture in chosen]
    columns = min(columns, count)
    height = max(thumb.height for thumb in thumbs) + TEXT + GAP
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT - 2)
    for index, (picture, thumb) in enumerate(zip(chosen, thumbs, strict=True)):
        left = GAP + index % columns * (width + GAP)
        top = GAP + index // columns * (height + GAP)
        sheet.paste(thumb, (left, top))
        draw.text((left + 1, top + thumb.height + 1), picture.caption, _INK, font)
    return sheet


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    height = max(1, round(picture.height * width / picture.width))
    return picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
