"""The floating point operations of a model, computed from its config.json alone.

A matrix of ``a x b`` weights costs a token ``2ab`` operations: a multiplication and an addition for
each weight (Kaplan et al. 2020, arXiv:2001.08361, table 1; Chowdhery et al. 2022, arXiv:2204.02311,
appendix B, which defines the share of the peak as "model FLOPs utilization"). So the weights that a
token meets count twice:

* in each layer of the language model, the projections of the attention (query, key, value, output)
  and the MLP (gate, up, down), or the router and the active experts;
* for each token of an answer, the output layer;
* for each patch of a picture, the patch embedding and the layers of the vision encoder, and for
  patches that become one token, the mergers.

Norms, adapters and the attention's products of tokens with tokens are left out, so the true number
is a little higher. Those products grow with the square of the length: they add 3 % for
Qwen2.5-VL-7B and prompts of 2,600 tokens, and 22 % to the encoder of Qwen3-VL-8B, which compares
all patches of a picture, for pictures of 640 x 640 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelFlops:
    """Floating point operations of a model.

    Attributes:
        token: For a token of a prompt or an answer, in the layers of the language model.
        head: For a token of an answer, in the output layer.
        patch: For a patch, in the vision encoder and its mergers.
    """

    token: int
    head: int
    patch: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelFlops | None:
        """The operations of the model with this config.json; None for an unknown kind of model or
        an incomplete file."""
        try:
            text = config.get("text_config") or config
            patch = 0
            if "vision_config" in config:
                vision = config["vision_config"]
                patch = 2 * _VISION[config["model_type"]](vision)
            elif config["model_type"] not in _TEXT:
                return None
            mlps = _experts(text) if config["model_type"].endswith("_moe") else _mlps(text)
            layers = _attention(text) * text["num_hidden_layers"] + mlps
            return cls(2 * layers, 2 * text["hidden_size"] * text["vocab_size"], patch)
        except (KeyError, TypeError):
            return None

    def total(self, prompt_tokens: int, completion_tokens: int, patches: int) -> float:
        """The operations for prompts, answers and pictures of so many tokens and patches."""
        tokens = prompt_tokens + completion_tokens
        return float(self.token * tokens + self.head * completion_tokens + self.patch * patches)


_TEXT = frozenset({"llama", "mistral", "qwen2", "qwen3", "qwen3_moe"})
"""Language models without a vision encoder, by ``model_type``."""


def _attention(text: Mapping[str, Any]) -> int:
    """Weights of the projections of one layer."""
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim") or hidden // heads
    return int(2 * hidden * head_dim * (heads + text["num_key_value_heads"]))


def _mlps(text: Mapping[str, Any]) -> int:
    """Weights of the MLPs of all layers."""
    return int(3 * text["hidden_size"] * text["intermediate_size"] * text["num_hidden_layers"])


def _experts(text: Mapping[str, Any]) -> int:
    """Weights of the MLPs of all layers that a token meets, for a mixture of experts."""
    layers = text["num_hidden_layers"]
    with_experts = sum(
        layer not in text["mlp_only_layers"] and (layer + 1) % text["decoder_sparse_step"] == 0
        for layer in range(layers)
    )
    # transformers 5 writes the number of experts under another name than the published files do.
    experts = text["num_experts"] if "num_experts" in text else text["num_local_experts"]
    active = 3 * text["num_experts_per_tok"] * text["moe_intermediate_size"]
    dense = (layers - with_experts) * _mlps(text) // layers
    return int(with_experts * text["hidden_size"] * (experts + active) + dense)


def _qwen2_vl(vision: Mapping[str, Any]) -> int:
    width = vision["embed_dim"]
    block = 4 * width**2 + 2 * width * int(width * vision["mlp_ratio"])
    return _patch(vision, width, block) + _merger(vision, width, vision["hidden_size"])


def _qwen2_5_vl(vision: Mapping[str, Any]) -> int:
    width = vision["hidden_size"]
    block = 4 * width**2 + 3 * width * vision["intermediate_size"]
    return _patch(vision, width, block) + _merger(vision, width, vision["out_hidden_size"])


def _qwen3_vl(vision: Mapping[str, Any]) -> int:
    width = vision["hidden_size"]
    block = 4 * width**2 + 2 * width * vision["intermediate_size"]
    mergers = 1 + len(vision["deepstack_visual_indexes"])
    merger = _merger(vision, width, vision["out_hidden_size"])
    return _patch(vision, width, block) + mergers * merger


_VISION = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl,
}
"""Weights that a patch meets, by ``model_type``."""


def _patch(vision: Mapping[str, Any], width: int, block: int) -> int:
    """Weights of the patch embedding and of the encoder's layers, of ``block`` weights each."""
    channels = vision["in_channels"] if "in_channels" in vision else vision["in_chans"]
    pixels = channels * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    return int(pixels * width + vision["depth"] * block)


def _merger(vision: Mapping[str, Any], width: int, out: int) -> int:
    """Weights of a merger, for each of the patches that it joins to a token. The patches together
    are ``merged`` wide, and the merger has ``merged**2 + merged * out`` weights."""
    merged: int = vision["spatial_merge_size"] ** 2 * width
    return merged * width + width * out
