"""The peak of a card: dense floating point operations a second, from the vendor's data sheet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Precision = Literal["bf16", "fp8"]
"""The precision in which a run multiplies: BF16 or FP16 (cards do both at one rate), or FP8."""

# TFLOP/s in BF16 and in FP8. The latter is None for cards that do not multiply in FP8: there vLLM
# multiplies FP8 weights in BF16. The names are those of nvidia-smi without "NVIDIA", and must match
# exactly, since other cards of similar names may be slower. Most sheets print numbers "with
# sparsity", which are twice these.
_TFLOPS: dict[str, tuple[float, float | None]] = {
    # NVIDIA H100 data sheet (2024): SXM 1,979 and 3,958 with sparsity, NVL 1,671 and 3,341; that of
    # 2022 for PCIe: 1,513 and 3,026
    "H100 80GB HBM3": (989.5, 1979.0),
    "H100 NVL": (835.5, 1670.5),
    "H100 PCIe": (756.5, 1513.0),
    # NVIDIA H200 data sheet: SXM 1,979 and 3,958 with sparsity, NVL 1,671 and 3,341
    "H200": (989.5, 1979.0),
    "H200 NVL": (835.5, 1670.5),
    # NVIDIA GH200 data sheet: 990 and 1,979, dense
    "GH200 480GB": (990.0, 1979.0),
    "GH200 120GB": (990.0, 1979.0),
    # NVIDIA HGX B200 data sheet: 36 and 72 PFLOP/s with sparsity for 8 cards
    "B200": (2250.0, 4500.0),
    # NVIDIA A100 data sheet: 312 dense, all of its forms
    "A100-SXM4-40GB": (312.0, None),
    "A100-SXM4-80GB": (312.0, None),
    "A100-PCIE-40GB": (312.0, None),
    "A100 80GB PCIe": (312.0, None),
    # NVIDIA A30 data sheet: 165 dense
    "A30": (165.0, None),
    # NVIDIA A10 data sheet: 125 dense
    "A10": (125.0, None),
    # NVIDIA A40 data sheet: 149.7 dense
    "A40": (149.7, None),
    # NVIDIA RTX A6000 data sheet: 309.7 with sparsity
    "RTX A6000": (154.85, None),
    # NVIDIA L40S data sheet: 362.05 and 733 dense
    "L40S": (362.05, 733.0),
    # NVIDIA L40 data sheet: 181.05 and 362 dense
    "L40": (181.05, 362.0),
    # NVIDIA L4 data sheet: 242 and 485 with sparsity
    "L4": (121.0, 242.5),
    # NVIDIA Ada GPU architecture white paper, appendix A: 165.2 and 330.3 dense, sums in FP32
    "GeForce RTX 4090": (165.2, 330.3),
    # NVIDIA Ampere GA102 GPU architecture white paper, table 2: 71 dense, sums in FP32
    "GeForce RTX 3090": (71.0, None),
}


def peak_flops(card: str | None, precision: Precision | None) -> float | None:
    """The peak of a card, by nvidia-smi's name, in operations a second; None if it is not known."""
    if card is None or precision is None:
        return None
    bf16, fp8 = _TFLOPS.get(card.removeprefix("NVIDIA ").strip(), (None, None))
    teraflops = fp8 if precision == "fp8" and fp8 is not None else bf16
    return None if teraflops is None else teraflops * 1e12


_WEIGHTS_ONLY = frozenset(
    {
        *("auto_awq", "awq", "awq_marlin", "auto_gptq", "gptq", "gptq_marlin", "moe_wna16"),
        "int8_per_channel_weight_only",
    }
)
"""vLLM's names of quantizations for which it multiplies in the unquantized type."""

_FP8 = frozenset({"fp8", "fp8_per_tensor", "fp8_per_block", "fp8_per_channel"})
"""vLLM's names of quantizations that multiply in FP8."""


def precision_of(
    dtype: str, quantization: str | None, settings: Mapping[str, Any] | None
) -> Precision | None:
    """The precision in which a model multiplies; None if it is not known.

    Args:
        dtype: Type of its weights without quantization, such as ``bfloat16``.
        quantization: vLLM's name of its quantization, if it has one.
        settings: ``quantization_config`` of its config.json.
    """
    if dtype not in ("bfloat16", "float16"):
        return None
    if quantization is None or quantization in _WEIGHTS_ONLY:
        return "bf16"
    if quantization in _FP8:
        return "fp8"
    if quantization == "compressed-tensors":
        groups = (settings or {}).get("config_groups") or {}
        precisions = {_of_group(group) for group in groups.values()}
        return precisions.pop() if len(precisions) == 1 else None
    return None


def _of_group(group: Mapping[str, Any]) -> Precision | None:
    """The precision of one group of layers of a checkpoint in the format compressed-tensors."""
    weights, inputs = group.get("weights"), group.get("input_activations")
    if inputs is None:
        return "bf16"
    kinds = [part and (part["type"], part["num_bits"]) for part in (weights, inputs)]
    return "fp8" if kinds == [("float", 8)] * 2 else None
