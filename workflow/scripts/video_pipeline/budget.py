"""Whether the longest possible prompt and answer fit into the model."""

from __future__ import annotations

import json
from pathlib import Path

from video_pipeline.config import Config
from video_pipeline.errors import UserError

MERGE_SIZE = 2
"""Patches merged into one token along each side (Qwen2-VL, Qwen2.5-VL, Qwen3-VL alike)."""

FRAMES_PER_PATCH = 2
"""Frames that share one temporal patch."""

TEXT_TOKENS = 256
"""What is set aside for the text of a prompt, in tokens."""

TIMESTAMP_TOKENS = 10
"""Tokens of the timestamp that Qwen3-VL (patches of 16) writes before each temporal patch, e.g.
``<1234.5 seconds>`` between two vision marks, at most."""

SIMULATED_PATCH_SIZE = 14
"""Patch size in pixels where no model is loaded."""

# Numbers of qwen_vl_utils.vision_process 0.0.14: the most pixels of one frame, in tokens.
_VIDEO_MAX_TOKEN_NUM = 768


def visual_tokens(config: Config, patch_size: int) -> int:
    """Upper bound on the tokens of one video under ``vision``, for a model whose patches are
    ``patch_size`` (14 or 16) pixels wide. The same arithmetic as qwen-vl-utils' ``fetch_video``.
    """
    vision = config.vision
    pixels_per_token = (patch_size * MERGE_SIZE) ** 2
    most = 0
    # Few large frames or many small ones: the bound per frame falls with their number, so the
    # most tokens can lie anywhere.
    for frames in range(FRAMES_PER_PATCH, vision.most_frames + 1, FRAMES_PER_PATCH):
        limit = max(
            min(
                _VIDEO_MAX_TOKEN_NUM * pixels_per_token,
                vision.total_pixels / frames * FRAMES_PER_PATCH,
            ),
            int(vision.min_pixels * 1.05),
        )
        per_frame = int(min(vision.max_pixels, limit)) // pixels_per_token
        stamps = TIMESTAMP_TOKENS if patch_size == 16 else 0
        most = max(most, frames // FRAMES_PER_PATCH * (max(per_frame, 1) + stamps))
    return most


def check_budget(config: Config, patch_size: int) -> None:
    """Raise :class:`UserError`, with the numbers, if the worst case exceeds the model's length."""
    visual = visual_tokens(config, patch_size)
    needed = visual + TEXT_TOKENS + config.most_tokens
    if needed > config.vllm.max_model_len:
        raise UserError(
            f"a video can need {visual} visual tokens + {TEXT_TOKENS} for text + "
            f"{config.most_tokens} for the answer (sampling.max_tokens, run.retry_truncated) = "
            f"{needed}, more than vllm.max_model_len: {config.vllm.max_model_len}. Lower "
            "vision.total_pixels, vision.max_pixels or vision.max_frames, or raise "
            "vllm.max_model_len"
        )


def check_budget_of_model(config: Config) -> None:
    """:func:`check_budget`, where the model is a local folder that tells its patch size.

    A model of the hub is checked when its processor is loaded, by the inference job.
    """
    if config.run.engine == "simulated":
        check_budget(config, SIMULATED_PATCH_SIZE)
        return
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = Path(config.vllm.model) / name
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            settings = settings.get("image_processor", settings)
            if isinstance(settings.get("patch_size"), int):
                check_budget(config, settings["patch_size"])
                return
