"""The section ``vision``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from video_pipeline.config.section import Positive, Section

NVDEC_PROCESSES = 4
"""Decode processes of a job that use the GPU's decoder with ``vision.decoder: auto``. An H100 has 7
decoders in hardware, and each process takes GPU memory."""


def decoder_of(decoder: str, number: int) -> str:
    """The ``vision.decoder`` of the decode process with this number: with ``auto`` only the first
    few use the GPU's."""
    return "cpu" if decoder == "auto" and number >= NVDEC_PROCESSES else decoder


class Vision(Section):
    """How many frames the model sees, and how large they are. Most keys are those of the video item
    that `qwen_vl_utils.process_vision_info` reads. The defaults fit `vllm.max_model_len: 32768`."""

    fps: Positive | None = 2.0
    """Frames to sample from each second. `null`: use `nframes`."""
    nframes: int | None = Field(default=None, ge=2)
    """Frames to sample from each video, an even number (any with the dataset `video`). It replaces
    `fps`. With the dataset `qwen_video`, a video with fewer frames becomes an error record."""
    min_frames: int | None = Field(default=None, ge=2)
    """Lower limit on the frames of a video. `null`: 4, as in qwen-vl-utils."""
    max_frames: int = Field(default=256, ge=2)
    """Upper limit on the frames of a video."""
    min_pixels: int = Field(default=16 * 28 * 28, gt=0)
    """Lower limit on the pixels of a frame after the resize."""
    max_pixels: int = Field(default=768 * 28 * 28, gt=0)
    """Upper limit on the pixels of a frame after the resize."""
    total_pixels: int = Field(default=20480 * 28 * 28, gt=0)
    """Limit on frames x pixels / 2 of a video, and so on its visual tokens: 20,480 tokens if a
    token covers 28 x 28 pixels (Qwen2.5-VL), 15,680 if it covers 32 x 32 (Qwen3-VL)."""

    use_audio_in_video: bool = False
    """Whether the model also hears the videos: for Qwen2.5-Omni and Qwen3-Omni, see
    [Sound](../docs/sound.md)."""
    resize: Literal["native", "exact"] = "native"
    """`native`: the fast uint8 resize of transformers' own Qwen video processor. `exact`: the
    resize of qwen-vl-utils, equal to the last bit, and much slower."""
    decoder: Literal["auto", "cpu", "nvdec"] = "cpu"
    """Which decoder reads videos. `cpu`: the CPU. `nvdec`: the GPU's own decoder, in every decode
    process; videos that it cannot decode go to the CPU. `auto`: a few decode processes use the
    GPU's decoder if there is one. The GPU's decoder needs memory beyond
    `vllm.gpu_memory_utilization`, see [The decoder on the GPU](../docs/nvdec.md).
    """

    @model_validator(mode="after")
    def _one_rate(self) -> Vision:
        if self.nframes is None and self.fps is None:
            raise ValueError("vision: give either vision.fps or vision.nframes")
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"vision.min_pixels: {self.min_pixels} is larger than vision.max_pixels: "
                f"{self.max_pixels}"
            )
        if self.min_frames is not None and self.min_frames > self.max_frames:
            raise ValueError(
                f"vision.min_frames: {self.min_frames} is larger than vision.max_frames: "
                f"{self.max_frames}"
            )
        return self

    def video_kwargs(self) -> dict[str, Any]:
        """The keys to add to a video item of the messages."""
        kwargs = self.model_dump(exclude_none=True, exclude={"decoder"})
        if not self.use_audio_in_video:
            del kwargs["use_audio_in_video"]
        if "nframes" in kwargs:  # qwen-vl-utils accepts one of the two
            for key in ("fps", "min_frames", "max_frames"):
                kwargs.pop(key, None)
        return kwargs
