"""The pictures that a model is shown, with their times: taken from a dataset's ``llm_input``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image


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
        """For people: the time and the size."""
        size = f"{self.image.width}x{self.image.height}"
        return size if self.seconds is None else f"{self.seconds:.2f} s  {size}"


def all_pictures(llm_inputs: Iterable[dict[str, Any]]) -> list[Picture]:
    """The pictures of a sample's conversations; those that show the same media share them."""
    by_media = {id(llm_input.get("multi_modal_data")): llm_input for llm_input in llm_inputs}
    return [picture for llm_input in by_media.values() for picture in pictures(llm_input)]


def pictures(llm_input: dict[str, Any]) -> list[Picture]:
    """All pictures in ``llm_input``, images first."""
    media = llm_input.get("multi_modal_data") or {}
    images, videos = media.get("image") or [], media.get("video") or []
    shown = [Picture(_image(image), None) for image in _listed(images)]
    for video in _listed(videos):
        frames, metadata = video if isinstance(video, tuple) else (video, {})
        metadata = metadata or {}
        indices, fps = metadata.get("frames_indices"), metadata.get("fps")
        for position, frame in enumerate(frames):
            index = indices[position] if indices is not None else position
            seconds = float(index) / fps if fps else None
            shown.append(Picture(_image(frame), seconds))
    return shown


def _image(frame: Any) -> Image.Image:
    """A frame as vLLM takes it: a tensor (3, height, width), an array (height, width, 3), or a
    picture already."""
    if isinstance(frame, Image.Image):
        return frame
    if isinstance(frame, torch.Tensor):
        frame = frame.permute(1, 2, 0).numpy()
    return Image.fromarray(np.asarray(frame).astype(np.uint8))


def _listed(items: Any) -> list[Any]:
    return items if isinstance(items, list) else [items]
