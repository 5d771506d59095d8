"""A family's own way from frames to inputs and answers, with transformers alone.

Nothing of this project takes part, but for the messages of the task ``describe``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.video_utils import VideoMetadata
from video_pipeline.tasks.describe import Describe

VIDEO, IMAGE, TEXT = {"type": "video"}, {"type": "image"}, {"type": "text"}
ASKED = {**TEXT, "text": Describe.default_prompt}


@dataclass(frozen=True)
class Clip:
    """Frames (uint8, frames x height x width x 3), and what is told of them: all frames of a video,
    or with ``frames_indices`` in ``told`` those that were sampled."""

    frames: np.ndarray
    told: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> Clip:
        """All frames of a file, as FFmpeg decodes them."""
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
            fps = float(stream.average_rate)
        told = {"fps": fps, "total_num_frames": len(frames), "duration": len(frames) / fps}
        return cls(frames, told)


class FamilyReference:
    """A checkpoint as transformers has it."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.processor = AutoProcessor.from_pretrained(checkpoint)
        self._is_omni = "Omni" in type(self.processor).__name__

    def sampled(self, clip: Clip) -> list[int]:
        """The frames that the family's own rule samples of a whole clip; where it leaves it open,
        two a second."""
        rule = self.processor.video_processor
        rate = {"fps": 2.0} if rule.num_frames is None and rule.fps is None else {}
        names = rule.valid_kwargs.__annotations__
        settings = {name: getattr(rule, name, None) for name in names} | rate
        metadata = VideoMetadata(**clip.told, video_backend="torchcodec")
        return [int(number) for number in rule.sample_frames(metadata=metadata, **settings)]

    def inputs(
        self,
        *clips: Clip,
        content: Sequence[dict[str, Any]] = (VIDEO, ASKED),
        images: Sequence[Any] = (),
        **settings: Any,
    ) -> Any:
        """What the processor makes of the conversation of ``describe``, whose user shows
        ``content``. Of whole clips it samples frames itself."""
        messages = [
            {"role": "system", "content": [{**TEXT, "text": Describe.system}]},
            {"role": "user", "content": list(content)},
        ]
        text = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        if self._is_omni:  # It is told the rate alone, and samples nothing.
            clips = tuple(self._thinned(clip) for clip in clips)
            (rate,) = {_rate(clip) for clip in clips} or {None}
            settings |= {"fps": rate} if clips else {}
        elif clips:
            rule = self.processor.video_processor
            is_whole = "frames_indices" not in clips[0].told
            if is_whole and rule.num_frames is None and rule.fps is None:
                settings["fps"] = 2.0
            settings["do_sample_frames"] = is_whole
            told = ("fps", "total_num_frames", "duration", "frames_indices")
            settings["video_metadata"] = [
                VideoMetadata(**{name: clip.told[name] for name in told if name in clip.told})
                for clip in clips
            ]
        videos = [torch.from_numpy(clip.frames.copy()).permute(0, 3, 1, 2) for clip in clips]
        return self.processor(
            text=[text],
            videos=videos or None,
            images=list(images) or None,
            add_special_tokens=False,
            return_tensors="pt",
            **settings,
        )

    def _thinned(self, clip: Clip) -> Clip:
        if "frames_indices" in clip.told:
            return clip
        numbers = self.sampled(clip)
        return Clip(clip.frames[numbers], {**clip.told, "frames_indices": numbers})

    def ids(self, inputs: Any) -> list[int]:
        """The tokens of a prompt. To vLLM another token of InternVL stands for what a video shows:
        here both are that of an image."""
        return self.alike(inputs["input_ids"][0].tolist())

    def alike(self, ids: list[int]) -> list[int]:
        """``ids`` with InternVL's two tokens for what a medium shows as one."""
        if type(self.processor).__name__ != "InternVLProcessor":
            return ids
        names = [self.processor.image_token, self.processor.video_token]
        image, video = self.processor.tokenizer.convert_tokens_to_ids(names)
        return [image if number == video else number for number in ids]

    @cached_property
    def model(self) -> Any:
        """The model in its own precision."""
        model: Any = AutoModelForMultimodalLM.from_pretrained(self._checkpoint)
        return getattr(model, "thinker", model).eval()

    def answer(self, inputs: Any, tokens: int) -> str:
        """The greedy answer of so many tokens."""
        inputs = inputs.to(self.model.dtype)
        with torch.inference_mode():
            said = self.model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
        new = said[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True))


def _rate(clip: Clip) -> float:
    """Frames a second at which a clip was sampled."""
    return len(clip.frames) / clip.told["total_num_frames"] * clip.told["fps"]
