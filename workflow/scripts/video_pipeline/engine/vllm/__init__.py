"""The engine with vLLM.

``compat`` alone imports vLLM. The modules ``names``, ``version`` and ``preparer`` do without it:
they are imported while Snakemake parses the workflow, or where vLLM may be missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_pipeline.engine.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]


def __getattr__(name: str) -> type[VllmEngine]:
    """Import vLLM when :class:`VllmEngine` is first used, and not before."""
    if name != "VllmEngine":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from video_pipeline.engine.vllm.engine import VllmEngine

    return VllmEngine
