"""The engines, which turn a prepared sample into text. Only ``engine.vllm`` imports vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_pipeline.config import Config
    from video_pipeline.engine.base import Engine


def modules_of(config: Config) -> list[str]:
    """The modules that a process imports to prepare samples for the engine ``run.engine``. Those
    for vLLM take 5 to 30 s."""
    if config.run.engine == "simulated":
        return []
    return ["video_pipeline.engine.vllm.renderer", "video_pipeline.video.reader"]


def create_engine(config: Config, *, with_videos: bool = True) -> Engine:
    """The engine of ``run.engine``, configured but not started. If samples have videos, the longest
    one must fit into the model. Raises :class:`UserError` if the engine refuses the settings."""
    if config.run.engine == "simulated":
        from video_pipeline.engine.simulated import SimulatedEngine

        return SimulatedEngine(config)
    from video_pipeline.config.vllm_version import warn_if_untried

    warn_if_untried()
    from video_pipeline.engine.vllm.engine import VllmEngine

    return VllmEngine(config, with_videos=with_videos)
