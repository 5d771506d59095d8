"""The shared parts of all tiny checkpoints: their sizes, and functions that make tokenizers and
configurations.

Each model has two layers of every kind. Heads have 32 dimensions, the smallest number of vLLM on a
CPU; its gated delta layers there (Qwen3.5, MiniCPM-V 4.6) need 64 or 128, and bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Weights = dict[str, Any]
"""Tensors by name."""

STOPS = ("<|im_end|>", "<|endoftext|>")
"""The tokens that end an answer in ChatML."""

CONTEXT = 32768
WIDTH = 128
"""The width of the text model, and of the outputs of the other models for it."""

TEXT: dict[str, Any] = {
    "vocab_size": 320,  # 256 bytes and the special tokens, rounded up as vLLM prefers.
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
TOWER |= {"num_hidden_layers": 2, "num_attention_heads": 2}
"""A vision model whose sizes have the names of text models."""
VISION: dict[str, Any] = {"depth": 2, "hidden_size": 64, "intermediate_size": 128}
VISION |= {"num_heads": 2, "out_hidden_size": WIDTH}
"""A vision model of the line of Qwen-VL."""
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
EXPERTS |= {"norm_topk_prob": True}  # transformers always does so, but vLLM reads the key.
UNTIED = {"tie_word_embeddings": False}
"""For text models whose class would tie them: vLLM reads this key, transformers the key above."""


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary embeddings whose frequencies are shared by time, height and width."""
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}


QWEN2_TEXT = {**TEXT, "rope_parameters": rope(4, 6, 6)}
QWEN3_TEXT = {**TEXT, "rope_parameters": rope(6, 5, 5, mrope_interleaved=True), "head_dim": 32}
QWEN3_5_TEXT = {
    **TEXT,
    "rope_parameters": rope(3, 3, 2, mrope_interleaved=True, partial_rotary_factor=0.25),
    "head_dim": 64,
    "layer_types": ["linear_attention", "full_attention"],
    **{"linear_key_head_dim": 64, "linear_num_key_heads": 2},
    **{"linear_value_head_dim": 64, "linear_num_value_heads": 4},
}
QWEN2_5_VISION = {**VISION, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1]}
QWEN3_5_VISION = {**VISION, "patch_size": 16, "num_position_embeddings": 256}
QWEN3_VISION = {**QWEN3_5_VISION, "deepstack_visual_indexes": [0]}


@dataclass(frozen=True)
class Parts:
    """The parts of a checkpoint beside its weights."""

    tokenizer: Any
    configuration: Any
    processor: Any
    stops: tuple[str, ...] = STOPS
    """The tokens that end an answer."""
    publish: Callable[[Weights], Weights] | None = None
    """Turns the weights that transformers writes into published ones: vLLM reads only those."""
    files: dict[str, Any] = field(default_factory=dict)
    """Other files, by name, with the objects that ``torch.save`` writes into them."""


def make_tokenizer(
    tokens: list[str],
    merges: list[tuple[str, str]],
    special: list[str],
    max_length: int,
    kind: str = "Qwen2Tokenizer",
    **more: Any,
) -> Any:
    """A byte-level BPE in Qwen's pre-tokenization; the numbers of ``special`` follow ``tokens``."""
    import transformers

    make: Any = getattr(transformers, kind)  # Its annotations lack the merges that it takes.
    return make(
        vocab={token: number for number, token in enumerate([*tokens, *special])},
        merges=merges,
        extra_special_tokens=special,
        pad_token="<|endoftext|>",
        model_max_length=max_length,
        **{"eos_token": "<|im_end|>", **more},
    )


def make_byte_tokenizer(special: tuple[str, ...], **more: Any) -> Any:
    """A tokenizer without merges, so that every byte is a token."""
    from tokenizers.pre_tokenizers import ByteLevel

    return make_tokenizer(
        sorted(ByteLevel.alphabet()), [], list(special), max_length=CONTEXT, **more
    )


def named(**tokens: str) -> dict[str, Any]:
    """The arguments of a tokenizer that let a processor ask for special tokens by name."""
    return {"model_specific_special_tokens": tokens}


def make_configuration(
    model_type: str, tokenizer: Any, tokens: dict[str, str], dtype: str = "float32", **more: Any
) -> Any:
    """The model's configuration, with the numbers of ``tokens`` under their names."""
    from transformers import AutoConfig

    return AutoConfig.for_model(model_type, dtype=dtype, **numbers(tokenizer, tokens), **more)


def numbers(tokenizer: Any, tokens: dict[str, str]) -> dict[str, int]:
    """The numbers of ``tokens``, by the names that a configuration gives them."""
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def make_generation_configuration(tokenizer: Any, stops: tuple[str, ...] = STOPS) -> Any:
    """The generation configuration. Answers end with any token of ``stops``."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig  # It has no annotations.
    return make(
        bos_token_id=tokenizer.convert_tokens_to_ids(tokenizer.bos_token or "<|endoftext|>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(list(stops)),
    )
