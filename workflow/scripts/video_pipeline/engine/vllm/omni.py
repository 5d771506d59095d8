"""Corrects how vLLM 0.32 mixes the sound and the frames of a video, in its workers.

The prompt of an omni model holds the tokens of both in turn. What differs from transformers:

* **Positions.** vLLM computes them by rules of its own, and not from the order of the tokens. For
  Qwen2.5-Omni it forgets the mark before the sound, so that each token has the position of the next
  one. For Qwen3-Omni it rounds the times of frames first, so that sound and pictures around a frame
  change places if the frames are not exactly whole steps apart.
* **Embeddings.** A step of the scheduler may end within a video. If its tokens are then first of
  sound and later of pictures, vLLM fills in the pictures first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.model_executor.models import qwen2_5_omni_thinker, qwen3_omni_moe_thinker

from video_pipeline.gpu.leases import LeaseHolder

_QWEN2_5 = qwen2_5_omni_thinker.Qwen2_5OmniThinkerForConditionalGeneration
_QWEN3 = qwen3_omni_moe_thinker.Qwen3OmniMoeThinkerForConditionalGeneration


class OmniWorker(LeaseHolder):
    """The ``worker_extension_cls`` for omni models."""


def positions(
    model: Any, tokens: list[int], features: list[Any], *, video_token: int, marks_share: bool
) -> tuple[torch.Tensor, int]:
    """The positions (3 x tokens) of a prompt in which videos have sound, and the difference between
    the next position and the number of tokens. They are those of transformers, cut to whole numbers
    as vLLM cuts those of other videos.

    Args:
        model: One of vLLM's omni models.
        tokens: The prompt.
        features: Its media, as vLLM gives them to a model.
        video_token: The token that stands for pictures of a video.
        marks_share: Whether the marks around a video and those around its sound have the same
            positions, as with Qwen2.5-Omni.
    """
    pieces: list[NDArray[np.int64]] = []
    done = 0

    def add(*new_pieces: NDArray[np.int64], begin: int | None = None) -> None:
        nonlocal done
        if begin is None:
            begin = int(pieces[-1].max()) + 1 if pieces else 0
        for piece in new_pieces:
            pieces.append(piece + begin)
            done += piece.shape[1]

    def in_turn(count: int) -> NDArray[np.int64]:
        return np.tile(np.arange(count), (3, 1))

    for offset, modality, data in model.iter_mm_features(features):
        if offset > done:
            add(in_turn(offset - done))
        if modality == "audio":
            add(in_turn(model._compute_audio_token_count(data["audio_feature_length"])))
            continue
        grid = np.indices((data["grid_t"], data["grid_h"], data["grid_w"])).reshape(3, -1)
        grid[0] = (grid[0] * data["t_factor"]).astype(np.int64)
        if not data.get("use_audio_in_video"):
            add(grid)
            continue
        sound = model._compute_audio_token_count(data["audio_feature_length"])
        # The marks around the sound stand between those around the video.
        add(in_turn(1), begin=int(pieces[-1].max()) if marks_share else None)
        is_video = np.array(tokens[done : done + grid.shape[1] + sound]) == video_token
        mixed = np.empty((3, len(is_video)), np.int64)
        mixed[:, is_video] = grid
        mixed[:, ~is_video] = in_turn(sound)
        # The next positions continue after the last tokens of one kind, even if the others are
        # further ahead.
        last = len(is_video) - int(np.argmax(is_video[::-1] != is_video[-1]))
        add(mixed[:, :last], mixed[:, last:])
        if marks_share:
            add(np.zeros((3, 2), np.int64))
    if done < len(tokens):
        add(in_turn(len(tokens) - done))
    result = np.concatenate(pieces, axis=1)
    return torch.from_numpy(result), int(result.max()) + 1 - len(tokens)


def _correct_positions(model_class: Any) -> None:
    of_vllm = model_class.get_mrope_input_positions

    def corrected(
        self: Any, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[torch.Tensor, int]:
        mixes = any(
            data.get("use_audio_in_video") for _, _, data in self.iter_mm_features(mm_features)
        )
        if not mixes:
            result: tuple[torch.Tensor, int] = of_vllm(self, input_tokens, mm_features)
            return result
        shares = model_class is _QWEN2_5
        token = self.config.video_token_index if shares else self.config.video_token_id
        return positions(self, input_tokens, mm_features, video_token=token, marks_share=shares)

    model_class.get_mrope_input_positions = corrected


def _has_both(is_video: Any, is_audio: Any, num_video: int, num_audio: int) -> bool:
    """Whether embeddings have to go to the tokens of their own kind, and not be used in order."""
    return num_video > 0 and num_audio > 0


for _model in (_QWEN2_5, _QWEN3):
    _correct_positions(_model)
for _module in (qwen2_5_omni_thinker, qwen3_omni_moe_thinker):
    vars(_module)["check_interleaved_audio_video"] = _has_both
