"""Engines: what turns a prepared sample into text. The only package that imports vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from video_pipeline.errors import UserError
from video_pipeline.vllm_names import installed_version, known_names

if TYPE_CHECKING:
    from video_pipeline.config import Config
    from video_pipeline.engine.base import Engine


class VllmUnfit(UserError):
    """vLLM is not installed, or lacks what is used of it."""


def modules_of(config: Config) -> list[str]:
    """What a process imports that prepares samples for the engine of ``run.engine``: for vLLM it
    takes 5 to 30 s."""
    simulated = config.run.engine == "simulated"
    return [] if simulated else ["video_pipeline.engine.vllm", "video_pipeline.video.reader"]


def create_engine(config: Config, *, with_videos: bool = True) -> Engine:
    """The engine of ``run.engine``, configured but not started; ``with_videos``: the longest video
    must fit into its model. Raises :class:`UserError`, and :class:`VllmUnfit`."""
    if config.run.engine == "simulated":
        from video_pipeline.engine.simulated import SimulatedEngine

        return SimulatedEngine(config)
    try:
        from video_pipeline.engine.vllm import VllmEngine
    except ImportError as error:
        installed, tried = installed_version(), known_names()["version"]
        what = "vLLM is not installed" if installed is None else f"vLLM {installed} does not fit"
        raise VllmUnfit(
            f"{what} ({error}). Tried: vLLM {tried}, with the packages that envs/gpu.txt and "
            "envs/cpu.txt list; envs/install.sh installs these"
        ) from error
    return VllmEngine(config, with_videos=with_videos)
