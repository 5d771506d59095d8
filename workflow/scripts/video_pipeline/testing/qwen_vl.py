"""Shared by the tiny checkpoints of the Qwen-VL line: special tokens, configuration, processor."""

from __future__ import annotations

from typing import Any

from video_pipeline.testing import parts
from video_pipeline.testing.chat_templates import CHAT_TEMPLATES

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
"""One family of each generation: tests run everything with them."""

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""In the order of their ids in the real tokenizers, which follow those of the other tokens."""

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def make_configuration(
    family: str,
    tokenizer: Any,
    dtype: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    **more: Any,
) -> Any:
    """The model's configuration, with the token numbers of ``tokenizer``."""
    ends = {"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"}
    tokens = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    tokens |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return parts.make_configuration(
        family,
        tokenizer,
        tokens,
        dtype,
        text_config={**text, **parts.numbers(tokenizer, ends)},
        vision_config=vision,
        **more,
    )


def make_processor(family: str, tokenizer: Any) -> Any:
    """Image and video processor with the numbers of the published checkpoints.

    vLLM normalises videos with the image processor's mean and std, so both must agree.
    """
    import transformers

    qwen: Any = transformers  # Its classes have no annotations.
    if family in ("qwen2_vl", "qwen2_5_vl"):
        make = qwen.Qwen2VLProcessor if family == "qwen2_vl" else qwen.Qwen2_5_VLProcessor
        make_video = qwen.Qwen2VLVideoProcessor
        pixels = {"patch_size": 14, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        image_size = video_size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    else:
        make, make_video = qwen.Qwen3VLProcessor, qwen.Qwen3VLVideoProcessor
        pixels = {"patch_size": 16, **HALVES}
        image_size = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
        video_size = {"shortest_edge": 4096, "longest_edge": 32 * 32 * 2 * 12288}
    return make(
        image_processor=qwen.Qwen2VLImageProcessor(size=image_size, **pixels),
        video_processor=make_video(size=video_size, **pixels),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATES[family],
    )
