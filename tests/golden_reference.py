"""The reference way from a video to an answer, with official code only.

Frames are sampled by qwen-vl-utils' own reader and sized by its ``process_vision_info``; prompt,
pixel values, positions and text come from the model's own processor and code in transformers.
Nothing of this project takes part.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import av
import numpy as np
import torch
from qwen_vl_utils import vision_process as qwen
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature
from transformers.image_utils import SizeDict
from transformers.video_processing_utils import BaseVideoProcessor


class Reference:
    """A checkpoint as transformers runs it: float32, eager attention.

    Attributes:
        processor: The model's own processor.
        patch_size: Width of a vision patch in pixels.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self.patch_size = self.processor.video_processor.patch_size
        self._exact: dict[str, Any] = {}  # by the messages, for `vision`
        self._native: dict[str, Any] = {}

    @cached_property
    def model(self) -> Any:
        """The model, loaded when first needed."""
        model = AutoModelForImageTextToText.from_pretrained(
            self._checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        _mend_positions(model.model)
        return model.eval()

    def vision(
        self, messages: list[dict[str, Any]], resize: str = "exact"
    ) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        """Frames and metadata of each video in ``messages``.

        ``resize``: ``exact`` gives the frames as qwen-vl-utils resizes them, ``native`` as the
        model's video processor does it, to the same size.
        """
        known = repr(messages)
        if known not in self._exact:
            self._exact[known] = self._process(messages, return_video_metadata=True)[1]
        if resize == "exact":
            return self._exact[known]
        if known not in self._native:
            items = qwen.extract_vision_info(messages)
            self._native[known] = [
                (self._resized(item, frames.shape[-2:]), metadata)
                for item, (frames, metadata) in zip(items, self._exact[known], strict=True)
            ]
        return self._native[known]

    def rates(self, messages: list[dict[str, Any]]) -> list[float]:
        """Frames per second that each video in ``messages`` is sampled at."""
        return self._process(messages)[2]["fps"]

    def _process(self, messages: list[dict[str, Any]], **options: Any) -> tuple[Any, Any, Any]:
        with _official_reader():
            return qwen.process_vision_info(
                messages, image_patch_size=self.patch_size, return_video_kwargs=True, **options
            )

    def _resized(self, item: dict[str, Any], size: torch.Size) -> torch.Tensor:
        with _official_reader():
            frames, _, _ = qwen.VIDEO_READER_BACKENDS["torchcodec"](item)
        processor = self.processor.video_processor
        return BaseVideoProcessor.resize(
            processor, frames, SizeDict(height=size[0], width=size[1]), processor.resample
        )

    def inputs(
        self, messages: list[dict[str, Any]], resize: str = "exact", **options: Any
    ) -> BatchFeature:
        """What the model's processor makes of ``messages``; ``options`` are handed to it."""
        videos = self.vision(messages, resize)
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.processor(
            text=[text],
            videos=[frames for frames, _ in videos],
            video_metadata=[copy.deepcopy(metadata) for _, metadata in videos],
            do_sample_frames=False,
            do_resize=False,
            return_mm_token_type_ids=True,
            return_tensors="pt",
            **options,
        )

    def positions(self, inputs: BatchFeature, installed: bool = False) -> torch.Tensor:
        """The multimodal rotary positions of a prompt: (time, height, width) x tokens.

        ``installed``: as the installed transformers has them, not mended.
        """
        model = self.model.model
        get_rope_index = model.get_rope_index
        if installed:
            get_rope_index = partial(type(model).get_rope_index, model)
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
        positions, _ = get_rope_index(**{name: inputs[name] for name in names if name in inputs})
        return positions[:, 0]

    def answer(self, messages: list[dict[str, Any]], max_tokens: int, resize: str) -> list[int]:
        """The tokens of the greedy answer."""
        inputs = self.inputs(messages, resize)
        with torch.inference_mode():
            tokens = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
        return tokens[0, inputs["input_ids"].shape[1] :].tolist()

    def text(self, tokens: list[int]) -> str:
        """``tokens`` as text, without the special ones."""
        return self.processor.tokenizer.decode(tokens, skip_special_tokens=True)


def _mend_positions(model: Any) -> None:
    """Let text go on behind the last position of a video, as Qwen2.5-VL was published.

    "The text start position_ids [is] the max vision position_ids plus 1", says its authors' own
    code (huggingface/transformers#35569); so does vLLM. From 5.3 on (5.19 here) transformers goes
    on behind the height or width instead, even if the video's time goes further: text then lies
    amidst the video. Where transformers does it right, this changes nothing.
    """
    get_rope_index = model.get_rope_index

    def mended(input_ids: torch.Tensor, mm_token_type_ids: torch.Tensor, **kwargs: Any) -> Any:
        positions, deltas = get_rope_index(
            input_ids=input_ids, mm_token_type_ids=mm_token_type_ids, **kwargs
        )
        (kinds,) = mm_token_type_ids.tolist()  # one prompt at a time
        begin, behind = 0, 0
        for _, group in groupby(kinds):
            part = slice(begin, begin + len(list(group)))
            positions[:, 0, part] += behind - positions[:, 0, part].min()
            begin, behind = part.stop, positions[:, 0, part].max() + 1
        return positions, (behind - len(kinds)).to(deltas.dtype).view(1, 1)

    model.get_rope_index = mended


@contextmanager
def _official_reader() -> Iterator[None]:
    """Let qwen-vl-utils read videos with its own torchcodec reader, whatever was registered.

    Where torchcodec does not load, the plainest of decoders stands in for it.
    """
    with mock.patch.object(qwen, "get_video_reader_backend", return_value="torchcodec"):
        try:
            import torchcodec.decoders  # noqa: F401
        except (ImportError, OSError, RuntimeError):
            stand_in = SimpleNamespace(VideoDecoder=_PlainDecoder)
            with mock.patch.dict(sys.modules, {"torchcodec.decoders": stand_in}):
                yield
        else:
            yield


class _PlainDecoder:
    """The part of ``torchcodec.decoders.VideoDecoder`` that qwen-vl-utils uses. It decodes and
    keeps everything, from the first frame to the last."""

    def __init__(self, path: str, **_: Any) -> None:
        with av.open(path) as container:
            stream = container.streams.video[0]
            self._frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            fps = float(stream.average_rate)
        self.metadata = SimpleNamespace(average_fps=fps, num_frames=len(self._frames))

    def get_frames_at(self, indices: list[int]) -> SimpleNamespace:
        frames = np.stack([self._frames[index] for index in indices])
        return SimpleNamespace(data=torch.from_numpy(frames).permute(0, 3, 1, 2))
