"""The parts that made checkpoints of Qwen2.5-VL and Qwen3-VL have in common: tokenizer,
configuration, chat template and processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAMILIES = ("qwen2_5_vl", "qwen3_vl")

SPECIAL_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
"""In the order of their numbers in the real tokenizers, which follow the ordinary tokens."""

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

# The published templates of both families treat text, images and videos like this. Qwen2.5-VL puts
# a system message before a conversation that has none.
_DEFAULT_SYSTEM = """\
{%- if loop.first and message.role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
DEFAULT_SYSTEM
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif item.type == 'video' or 'video' in item -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in item -%}
{{- item.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
CHAT_TEMPLATES = {
    "qwen2_5_vl": _CHAT_TEMPLATE.replace("DEFAULT_SYSTEM\n", _DEFAULT_SYSTEM),
    "qwen3_vl": _CHAT_TEMPLATE.replace("DEFAULT_SYSTEM\n", ""),
}


def make_tokenizer(
    tokens: list[str], merges: list[tuple[str, str]], special: list[str], max_length: int
) -> Any:
    """A byte-level BPE in Qwen's pre-tokenization; the numbers of ``special`` follow ``tokens``."""
    from transformers import Qwen2Tokenizer

    make: Any = Qwen2Tokenizer  # Its annotations do not know the merges that it takes.
    return make(
        vocab={token: number for number, token in enumerate([*tokens, *special])},
        merges=merges,
        extra_special_tokens=special,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=max_length,
    )


def make_configuration(
    family: str,
    tokenizer: Any,
    dtype: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    **more: Any,
) -> Any:
    """The model's configuration, with the token numbers of ``tokenizer``."""
    from transformers import AutoConfig

    number = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": number("<|endoftext|>"), "eos_token_id": number("<|im_end|>")}
    return AutoConfig.for_model(
        family,
        text_config={**text, **ends},
        vision_config=vision,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        dtype=dtype,
        **more,
    )


def make_generation_configuration(tokenizer: Any) -> Any:
    """Answers end with either of two tokens."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # It has no annotations.
    end, stop = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    return make(bos_token_id=end, pad_token_id=end, eos_token_id=[stop, end])


def save_processor(family: str, tokenizer: Any, folder: Path) -> None:
    """Write image and video processor with the numbers of the published checkpoints.

    vLLM normalises videos with the image processor's mean and std, so both must agree.
    """
    import transformers

    qwen: Any = transformers  # Its classes have no annotations.
    if family == "qwen2_5_vl":
        make, make_video = qwen.Qwen2_5_VLProcessor, qwen.Qwen2VLVideoProcessor
        pixels = {"patch_size": 14, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        image_size = video_size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}
    else:
        make, make_video = qwen.Qwen3VLProcessor, qwen.Qwen3VLVideoProcessor
        pixels = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        image_size = {"shortest_edge": 256 * 256, "longest_edge": 4096 * 4096}
        video_size = {"shortest_edge": 4096, "longest_edge": 32 * 32 * 2 * 12288}
    make(
        image_processor=qwen.Qwen2VLImageProcessor(size=image_size, **pixels),
        video_processor=make_video(size=video_size, **pixels),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATES[family],
    ).save_pretrained(folder)
