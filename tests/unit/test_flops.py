"""What a model computes, against transformers: the weights of its modules, and what torch counts
while one runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from video_pipeline.gpu.peaks import peak_flops, precision_of
from video_pipeline.model.flops import ModelFlops
from video_pipeline.testing.qwen_vl import FAMILIES
from video_pipeline.testing.tiny_model import write_tiny_model

VISION_2_5 = {
    **{"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420},
    **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
}
VISION_3 = {
    **{"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304},
    **{"patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
    **{"num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24]},
}

# The published config.json files, and how many weights the hub says that their checkpoints have.
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, int]] = {
    "Qwen2.5-VL-7B": (
        "qwen2_5_vl",
        {
            **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
            **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        },
        {**VISION_2_5, "out_hidden_size": 3584},
        8_292_166_656,
    ),
    "Qwen2-VL-7B": (
        "qwen2_vl",
        {
            **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944},
            **{"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        },
        {
            **{"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_channels": 3},
            **{"hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2},
        },
        8_291_375_616,
    ),
    "Qwen3-VL-8B": (
        "qwen3_vl",
        {
            **{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288},
            **{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
            "head_dim": 128,
        },
        {**VISION_3, "out_hidden_size": 4096},
        8_767_123_696,
    ),
    "Qwen3-VL-30B-A3B": (
        "qwen3_vl_moe",
        {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144},
            **{"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4},
            **{"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8},
            **{"moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": []},
        },
        {**VISION_3, "out_hidden_size": 2048},
        31_070_754_032,
    ),
    "Llama-3.1-8B": (
        "llama",
        {
            **{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336},
            **{"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
        },
        None,
        8_030_261_248,
    ),
    "Qwen3-30B-A3B": (
        "qwen3_moe",
        {
            **{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144},
            **{"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4},
            **{"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8},
            **{"moe_intermediate_size": 768, "decoder_sparse_step": 1, "mlp_only_layers": []},
        },
        None,
        30_532_122_624,
    ),
}


def published(name: str) -> Any:
    """The configuration of transformers for a published model."""
    family, text, vision, _ = PUBLISHED[name]
    text = {**text, "tie_word_embeddings": False}
    if vision is None:
        return AutoConfig.for_model(family, **text)
    return AutoConfig.for_model(
        family, text_config=text, vision_config=vision, tie_word_embeddings=False
    )


def weightless(config: Any) -> torch.nn.Module:
    """The model of transformers, without memory for its weights."""
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def matrices(module: torch.nn.Module, active: float = 1.0) -> float:
    """Weights that are multiplied with something: of experts (three dimensions, but no convolution,
    which has five) the ``active`` share."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    return sum(
        weight.numel() * (active if weight.ndim == 3 else 1.0)
        for weight in module.parameters()
        if weight.ndim >= 2 and id(weight) not in tables
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_operations_are_twice_the_weights_of_the_modules(name):
    config = published(name)
    model = weightless(config)
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[name][3]
    text = config.get_text_config()
    active = text.num_experts_per_tok / text.num_experts if "moe" in config.model_type else 1.0
    found = ModelFlops.of(config.to_dict())
    assert found.head == 2 * model.lm_head.weight.numel()
    if not hasattr(config, "vision_config"):
        assert found.token == 2 * matrices(model.model, active)
        assert found.patch == 0
        return
    assert found.token == 2 * matrices(model.model.language_model, active)
    visual = model.model.visual
    mergers = [m for n, m in visual.named_children() if "merger" in n]
    merged = sum(matrices(each) for each in mergers)
    patches = config.vision_config.spatial_merge_size**2
    assert found.patch == 2 * (matrices(visual) - merged + merged / patches)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(family, tmp_path):
    """In a forward pass over a real input, but for what attention does with pairs of tokens."""
    folder = write_tiny_model(tmp_path / "model", family)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa")
    config = json.loads((folder / "config.json").read_text())
    grid = torch.tensor([[2, 4, 6]])
    patches, side = int(grid.prod()), config["vision_config"]["patch_size"]
    visual_tokens, text_tokens = patches // 4, 5
    ids = [7] * text_tokens + [config["image_token_id"]] * visual_tokens
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(
            input_ids=torch.tensor([ids]),
            mm_token_type_ids=torch.tensor([[0] * text_tokens + [1] * visual_tokens]),
            pixel_values=torch.zeros(patches, 3 * 2 * side**2),
            image_grid_thw=grid,
            logits_to_keep=1,
        )
    counts = counter.get_flop_counts()["Global"]
    counted = sum(n for what, n in counts.items() if "attention" not in str(what))
    flops = ModelFlops.of(config)
    assert flops.total(len(ids) - 1, 1, patches) == pytest.approx(counted, rel=0.0001)


def test_a_flat_config_says_the_same_as_a_nested_one():
    """Qwen2.5-VL's published config.json has the language model's fields at the top, the fewest of
    them, and another name for the channels."""
    config = published("Qwen2.5-VL-7B").to_dict()
    _, text, vision, _ = PUBLISHED["Qwen2.5-VL-7B"]
    flat_vision = {**vision, "in_chans": vision["in_channels"]}
    del flat_vision["in_channels"]
    flat = {**text, "model_type": "qwen2_5_vl", "vision_config": flat_vision}
    assert ModelFlops.of(flat) == ModelFlops.of(config)


def test_a_published_file_has_another_name_for_the_experts():
    _, text, vision, _ = PUBLISHED["Qwen3-VL-30B-A3B"]
    raw = {"model_type": "qwen3_vl_moe", "text_config": text, "vision_config": vision}
    assert ModelFlops.of(raw) == ModelFlops.of(published("Qwen3-VL-30B-A3B").to_dict())
    assert ModelFlops.of({**raw, "text_config": {**text, "num_experts": None}}) is None


def test_layers_without_experts():
    config = published("Qwen3-VL-30B-A3B")
    config.text_config.mlp_only_layers = [0, 5]
    config.text_config.decoder_sparse_step = 2
    config.text_config.num_hidden_layers = 8
    model = weightless(config)
    counted = 2 * matrices(model.model.language_model, 8 / 128)
    assert ModelFlops.of(config.to_dict()).token == counted


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "gpt2", "n_embd": 768},
        # the shape of a known one, but who knows what else is in it
        {**published("Llama-3.1-8B").to_dict(), "model_type": "qwen3_next"},
        {**published("Qwen3-VL-8B").to_dict(), "model_type": "qwen3_5"},
        {**published("Qwen3-VL-8B").to_dict(), "vision_config": None},
        {**published("Qwen3-VL-8B").to_dict(), "vision_config": {"depth": 27}},
    ],
)
def test_an_unknown_model_has_no_number(config):
    assert ModelFlops.of(config) is None


# --- cards ---------------------------------------------------------------------------------------


def test_the_peak_of_a_card():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.5e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp8") == 1979e12
    # no FP8 there: vLLM multiplies in BF16
    assert peak_flops("NVIDIA A100-SXM4-80GB", "fp8") == 312e12
    # drivers before 470 leave the vendor out
    assert peak_flops("A100-SXM4-80GB", "bf16") == 312e12


@pytest.mark.parametrize(
    ("card", "precision"),
    [
        (None, "bf16"),
        ("NVIDIA H100 80GB HBM3", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),
        ("NVIDIA A100-SXM-64GB", "bf16"),
        ("NVIDIA H20", "bf16"),
        ("Tesla T4", "bf16"),
    ],
)
def test_an_unknown_card_has_no_peak(card, precision):
    assert peak_flops(card, precision) is None


def test_cards_have_the_names_that_vllm_has_seen():
    """vLLM's own tuning files are named after what NVML says."""
    import vllm.model_executor.layers.fused_moe as fused_moe

    files = (Path(fused_moe.__file__).parent / "configs").glob("*device_name=NVIDIA_*.json")
    seen = {
        f.name.partition("device_name=")[2].partition(",")[0].removesuffix(".json") for f in files
    }
    known = {name.replace("_", " ") for name in seen if peak_flops(name.replace("_", " "), "bf16")}
    assert known == {
        *("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
        *("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA B200"),
        *("NVIDIA L40S", "NVIDIA GeForce RTX 4090"),
    }


def group(inputs: dict | None, bits: int = 8, kind: str = "float") -> dict:
    return {"weights": {"type": kind, "num_bits": bits}, "input_activations": inputs}


EIGHT = {"type": "float", "num_bits": 8}


@pytest.mark.parametrize(
    ("quantization", "settings", "precision"),
    [
        (None, None, "bf16"),
        ("fp8", None, "fp8"),
        ("fp8_per_block", None, "fp8"),
        ("awq_marlin", {"quant_method": "awq"}, "bf16"),
        ("compressed-tensors", {"config_groups": {"0": group(EIGHT)}}, "fp8"),
        ("compressed-tensors", {"config_groups": {"0": group(None, 4, "int")}}, "bf16"),
        ("compressed-tensors", {"config_groups": {"0": group(EIGHT, 4)}}, None),
        (
            "compressed-tensors",
            {"config_groups": {"0": group(EIGHT), "1": group(None, 4, "int")}},
            None,
        ),
        ("compressed-tensors", {}, None),
        ("modelopt_fp4", {}, None),
    ],
)
def test_the_precision_of_a_run(quantization, settings, precision):
    assert precision_of("bfloat16", quantization, settings) == precision
    assert precision_of("float32", quantization, settings) is None
