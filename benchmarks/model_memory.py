"""The memory that models need, from the figures in their published config.json: the table in
docs/choosing.md.

    python -m benchmarks.model_memory

transformers makes each model without weights, and counts its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

QWEN25_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
QWEN3_VISION = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
SMALL_QWEN3_VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
QWEN3_LAYERS = {27: [8, 16, 24], 24: [5, 11, 17]}


def _qwen25(
    hidden: int, layers: int, heads: int, kv: int, mlp: int, vocabulary: int, **vision: int
):
    return {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": hidden == 2048,
        "text_config": {
            **{"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads},
            **{"num_key_value_heads": kv, "intermediate_size": mlp, "vocab_size": vocabulary},
            "tie_word_embeddings": hidden == 2048,
        },
        "vision_config": {**QWEN25_VISION, "out_hidden_size": hidden, **vision},
    }


def _qwen3(
    hidden: int, layers: int, heads: int, mlp: int, vision: dict[str, int], kv: int = 8, **text: int
):
    tied = hidden <= 2560 and not text
    return {
        "model_type": "qwen3_vl_moe" if text else "qwen3_vl",
        "tie_word_embeddings": tied,
        "text_config": {
            **{"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads},
            **{"num_key_value_heads": kv, "intermediate_size": mlp, "vocab_size": 151936},
            **{"head_dim": 128, "tie_word_embeddings": tied, **text},
        },
        "vision_config": {
            **vision,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": QWEN3_LAYERS[vision["depth"]],
        },
    }


MODELS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen25(2048, 36, 16, 2, 11008, 151936),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen25(3584, 28, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen25(5120, 64, 40, 8, 27648, 152064, intermediate_size=3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen25(8192, 80, 64, 8, 29568, 152064, intermediate_size=3456),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen3(2048, 28, 16, 6144, SMALL_QWEN3_VISION),
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3(2560, 36, 32, 9728, SMALL_QWEN3_VISION),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3(4096, 36, 32, 12288, QWEN3_VISION),
    "Qwen/Qwen3-VL-32B-Instruct": _qwen3(5120, 64, 64, 25600, QWEN3_VISION),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": _qwen3(
        *(2048, 48, 32, 6144, QWEN3_VISION, 4),
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
}
"""By name on the hub, the figures of config.json that decide about memory."""


CARDS = {"L4": 23_034, "A100 40": 40_960, "L40S": 46_068, "H100 80": 81_559, "H200": 143_771}
"""Memory in MiB, as ``nvidia-smi`` shows it."""

USED = 0.92
"""The share of a card that vLLM uses, by default."""

OVERHEAD = 3 * 2**30
"""Bytes of a GPU for what is computed at the moment, CUDA's graphs and its context: a rule of thumb
that was not measured."""


def num_parameters(figures: dict[str, Any]) -> int:
    """The parameters of a model."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**figures))
    return sum(parameter.numel() for parameter in model.parameters())


def cache_bytes(figures: dict[str, Any]) -> int:
    """Bytes of the KV cache for a token in bfloat16: a key and a value of each head and layer."""
    text = figures["text_config"]
    head_dim = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    return 2 * 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim


def room(parameters: int, cache: int, card: int, gpus: int) -> str:
    """How many thousands of tokens the cache of ``gpus`` cards holds beside the weights."""
    left = gpus * (USED * card * 2**20 - OVERHEAD) - 2 * parameters
    return f"{left / cache / 1000:,.0f}" if left >= 32_768 * cache else "-"


def rows() -> Iterator[str]:
    """The lines of the table."""
    names = [*CARDS, "2 x H100 80", "4 x H100 80"]
    yield f"| model | parameters | weights, GB | {' | '.join(names)} |"
    yield f"|---|---|---|{'---|' * len(names)}"
    for name, figures in MODELS.items():
        parameters, cache = num_parameters(figures), cache_bytes(figures)
        cells = [room(parameters, cache, card, 1) for card in CARDS.values()]
        cells += [room(parameters, cache, CARDS["H100 80"], gpus) for gpus in (2, 4)]
        billions, gigabytes = parameters / 1e9, 2 * parameters / 1e9
        yield f"| {name} | {billions:.1f} B | {gigabytes:.1f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("\n".join(rows()))
