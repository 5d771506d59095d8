"""Checks that the longest possible prompt and answer fit into the model."""

from __future__ import annotations

from pathlib import Path

from video_pipeline.common.files import read_object
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.model.family import is_qwen_vl

MERGE_SIZE = 2
"""Patches merged into one token along each side (Qwen2-VL, Qwen2.5-VL, Qwen3-VL alike)."""

FRAMES_PER_PATCH = 2
"""Frames that share one temporal patch."""

TEXT_TOKENS = 256
"""Tokens that are set aside for the text of a prompt."""

TIMESTAMP_TOKENS = 10
"""The most tokens of the timestamp that Qwen3-VL (patches of 16) writes before each temporal patch,
such as ``<1234.5 seconds>`` between two vision marks."""

SIMULATED_PATCH_SIZE = 14
"""Patch size in pixels if no model is loaded."""

_VIDEO_MAX_TOKEN_NUM = 768
"""Limit of qwen_vl_utils.vision_process 0.0.14 on the tokens of one frame."""


def visual_tokens(config: Config, patch_size: int) -> int:
    """Upper bound on the tokens of one video under ``vision``, with the arithmetic of
    qwen-vl-utils' ``fetch_video``. ``patch_size``: width of the model's patches in pixels."""
    vision = config.vision
    pixels_per_token = (patch_size * MERGE_SIZE) ** 2
    timestamp = TIMESTAMP_TOKENS if patch_size == 16 else 0
    kept = 1 - config.vllm.number("video_pruning_rate")

    def tokens(patches: int) -> int:
        limit = min(_VIDEO_MAX_TOKEN_NUM * pixels_per_token, vision.total_pixels / patches)
        pixels = min(vision.max_pixels, max(limit, int(vision.min_pixels * 1.05)))
        of_patch = max(int(pixels) // pixels_per_token, 1)
        # vLLM prunes no tokens of the first patch.
        return max(of_patch, int(patches * of_patch * kept)) + patches * timestamp

    # The bound on a frame falls with the number of frames: any number may have the most tokens.
    most_frames = vision.nframes or vision.max_frames
    return max(map(tokens, range(1, most_frames // FRAMES_PER_PATCH + 1)), default=0)


def check_budget(config: Config, patch_size: int) -> None:
    """Compare the worst case with ``vllm.max_model_len``, if qwen-vl-utils sizes the videos. Other
    families size them themselves, and vLLM refuses prompts that do not fit.

    Raises:
        UserError: The worst case is longer; the message has the numbers.
    """
    if config.run.dataset == "video" or is_qwen_vl(config) is False:
        return
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
    """:func:`check_budget` for the simulated engine, or a local folder that says its patch size.

    A model of the hub is checked by the inference job, when its processor is loaded.
    """
    if config.run.engine == "simulated":
        return check_budget(config, SIMULATED_PATCH_SIZE)
    for name in ("preprocessor_config.json", "processor_config.json"):
        settings = read_object(Path(config.vllm.model, name))
        patch_size = settings.get("image_processor", settings).get("patch_size")
        if isinstance(patch_size, int):
            return check_budget(config, patch_size)
