"""Model folders of real size without weights: true dimensions, and a vocabulary as large as Qwen's.

    python -m benchmarks.real_model DIR

writes ``DIR/qwen2.5-vl-7b``, ``DIR/qwen2.5-vl-3b`` and ``DIR/qwen3-vl-8b`` in some seconds. A
tokenizer of real size costs time and memory when a process starts; a tiny model hides that.
vLLM fills in random weights (``load_format: dummy``): throughput does not depend on their values as
long as the length of an answer is fixed. Dimensions are those of the published configurations.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from video_pipeline.testing import parts, qwen_vl

SPECIAL_TOKENS = [
    *qwen_vl.SPECIAL_TOKENS,
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]
ORDINARY_TOKENS = 151_643
"""The number of ordinary tokens of Qwen2.5; the special ones follow in their published order."""

_ROPE_2_5 = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
_ROPE_3 = {
    **{"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    **{"mrope_interleaved": True},
}
_VISION_2_5 = {
    **{"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420},
    **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112},
    **{"fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2},
}
_VISION_3 = {
    **{"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304},
    **{"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2},
    **{"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]},
}

MODELS: dict[str, dict[str, Any]] = {
    "qwen2.5-vl-7b": {
        "family": "qwen2_5_vl",
        "tied": False,
        "text": {
            **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
            **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
            **{"max_position_embeddings": 128000, "rope_parameters": _ROPE_2_5},
        },
        "vision": {**_VISION_2_5, "out_hidden_size": 3584},
    },
    "qwen2.5-vl-3b": {
        "family": "qwen2_5_vl",
        "tied": True,
        "text": {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008},
            **{"num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2},
            **{"max_position_embeddings": 128000, "rope_parameters": _ROPE_2_5},
        },
        "vision": {**_VISION_2_5, "out_hidden_size": 2048},
    },
    "qwen3-vl-8b": {
        "family": "qwen3_vl",
        "tied": False,
        "text": {
            **{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288},
            **{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
            **{"head_dim": 128, "max_position_embeddings": 262144, "rope_parameters": _ROPE_3},
        },
        "vision": {**_VISION_3, "out_hidden_size": 4096},
    },
}
"""The arguments of :func:`_write`, by the names of the folders."""

_ARCHITECTURES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}


def write_real_model(folder: Path, name: str) -> Path:
    """Write the model called ``name`` into ``folder``, unless it is there; returns ``folder``."""
    marker = folder / "tokenizer_config.json"  # written last
    if not marker.exists():
        _write(folder, **MODELS[name])
    return folder


def _write(
    folder: Path, family: str, tied: bool, text: dict[str, Any], vision: dict[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(text["vocab_size"])
    assert tokenizer.convert_tokens_to_ids("<|video_pad|>") == 151656
    common: dict[str, Any] = {"tie_word_embeddings": tied, "dtype": "bfloat16"}
    config = qwen_vl.make_configuration(
        family,
        tokenizer,
        text={**text, **common, "rms_norm_eps": 1e-6},
        vision={**vision, "dtype": "bfloat16"},
        **common,
    )
    config.architectures = [_ARCHITECTURES[family]]
    config.save_pretrained(folder)
    parts.make_generation_configuration(tokenizer).save_pretrained(folder)
    qwen_vl.make_processor(family, tokenizer).save_pretrained(folder)


def _tokenizer(vocab_size: int) -> Any:
    """A byte-level BPE of invented words with ``vocab_size`` tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges: dict[str, tuple[str, str]] = {}  # By the token that they make.
    for left, right in _merges():
        if len(alphabet) + len(merges) == ORDINARY_TOKENS:
            break
        merges.setdefault(left + right, (left, right))
    more = vocab_size - ORDINARY_TOKENS - len(SPECIAL_TOKENS)
    special = [*SPECIAL_TOKENS, *(f"<|extra_{number}|>" for number in range(more))]
    return parts.make_tokenizer(
        [*alphabet, *merges], list(merges.values()), special, max_length=131072
    )


def _merges() -> Iterator[tuple[str, str]]:
    """Yield pairs that make words of one to four letters, some of them behind a space."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    space = "\u0120"
    for a in letters:
        yield space, a
    for a, b in itertools.product(letters, repeat=2):
        yield a, b
    for a, b, c in itertools.product(letters, repeat=3):
        yield a + b, c
    for a, b, c in itertools.product(letters, repeat=3):
        yield space + a, b + c
    for a, b, c, d in itertools.product(letters, repeat=4):
        yield a + b, c + d


def main() -> None:
    """Run ``python -m benchmarks.real_model``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to write the folders")
    arguments = parser.parse_args()
    for name in MODELS:
        print(write_real_model(arguments.folder / name, name))


if __name__ == "__main__":
    main()
