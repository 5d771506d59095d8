"""Makes requests from prompts and media with vLLM's renderer, in a decode process."""

from __future__ import annotations

import logging
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.video import VideoDataset
from video_pipeline.engine.base import RequestRefused
from video_pipeline.engine.vllm.causes import origin_of
from video_pipeline.engine.vllm.compat import SampleRenderer, VllmConfig, media_of, media_ranges
from video_pipeline.engine.vllm.conversations import ConversationRenderer
from video_pipeline.model.family import family_of_folder
from video_pipeline.model.processor import processor_folder
from video_pipeline.model.prompt import PlaceholderError, listed_media
from video_pipeline.model.special_tokens import SpecialTokenError
from video_pipeline.tasks.base import ONLY_PART
from video_pipeline.video.write_clip import write_clip

logger = logging.getLogger(__name__)


class Renderer:
    """Makes the requests of samples."""

    def __init__(self, vllm_config: VllmConfig, chat_template_kwargs: dict[str, Any]) -> None:
        """Changes ``vllm_config``, which must not be the engine's. ``chat_template_kwargs`` are for
        prompts that come as messages."""
        self._model_config = vllm_config.model_config
        self._renderer = SampleRenderer(vllm_config)
        self._chat_template_kwargs = chat_template_kwargs

    @cached_property
    def _conversations(self) -> ConversationRenderer:
        return ConversationRenderer(
            self._renderer,
            processor_folder(self._model_config.model, self._model_config.revision),
            self._model_config.hf_config,
            self._chat_template_kwargs,
        )

    def warm_up(self) -> None:
        """Prepare a made-up video, so that everything is loaded that vLLM, transformers and FFmpeg
        load at first use."""
        model = processor_folder(self._model_config.model, self._model_config.revision)
        is_qwen_vl = family_of_folder(model) in ("qwen_vl", None)
        kind = QwenVideoDataset if is_qwen_vl else VideoDataset
        dataset = kind(
            samples=(),
            task=None,  # type: ignore[arg-type]  # it is not asked: the messages are made below
            model=model,
            video_field="",
            vision_kwargs={},
            params={},
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                clip = write_clip(Path(folder) / "clip.mp4", seconds=0.5)
                item = {"type": "video", "video": str(clip), "fps": 2.0, "max_frames": 2}
                video = dataset.visual(item, {})
                content = [video, {"type": "text", "text": "What happens?"}]
                messages = {ONLY_PART: [{"role": "user", "content": content}]}
                self.prepare(dataset.llm_inputs(messages), "made-up")
        except Exception as error:
            # The model may take no video. Any other error comes again with each sample.
            logger.debug("a made-up video could not be prepared: %s", error)

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        """See :meth:`video_pipeline.engine.base.Preparer.prepare`."""
        # Without names of our own each process would count its items from 1: two videos would share
        # a name, and the encoder cache would answer for the wrong one.
        names: dict[int, str] = {}
        requests = {}
        try:
            for part, llm_input in llm_inputs.items():
                uuids = {
                    modality: [
                        names.setdefault(id(item), f"{key}-{modality}-{len(names)}")
                        for item in items
                    ]
                    for modality, items in listed_media(llm_input).items()
                }
                if "messages" in llm_input:
                    llm_input = self._conversations.with_prompt(llm_input, uuids)
                requests[part] = self._render({**llm_input, "multi_modal_uuids": uuids})
        except Exception as error:
            raise RequestRefused(*origin_of(error)) from error
        finally:
            self._renderer.forget_media()
        return requests

    def _render(self, llm_input: dict[str, Any]) -> dict[str, Any]:
        request = self._renderer.render(llm_input)
        hf_config = self._model_config.hf_config
        _check_tokens(request, hf_config, llm_input.get("prompt_token_ids"))
        # In an omni model this is the part that sees and hears.
        thinker = getattr(hf_config, "thinker_config", hf_config)
        vision = getattr(thinker, "vision_config", None)
        rate = getattr(thinker, "position_id_per_seconds", getattr(vision, "tokens_per_second", 1))
        for modality, _, video in media_of(request):
            if modality == "video" and "second_per_grid_ts" in video:
                _round_as_transformers(video, rate)
        return request


def _check_tokens(request: dict[str, Any], hf_config: Any, prompt_ids: list[int] | None) -> None:
    """Check the tokens that vLLM has made of a prompt, beside those of media.

    Raises:
        SpecialTokenError: The prompt came as the tokens ``prompt_ids`` and has other tokens now. If
            vLLM finds no placeholder among them, it tokenizes their text again, in which special
            tokens act.
        PlaceholderError: No medium took a placeholder.
    """
    ids = request.get("prompt_token_ids") or []
    text_ids: list[int] = []
    begin = 0
    for media_begin, media_end in media_ranges(request):
        text_ids += ids[begin:media_begin]
        begin = max(begin, media_end)
    text_ids += ids[begin:]
    prompt = iter(prompt_ids or text_ids)
    if not all(token in prompt for token in text_ids):  # In this order.
        raise SpecialTokenError("vLLM changes the tokens of this prompt")
    for modality in ("image", "video"):
        if getattr(hf_config, f"{modality}_token_id", None) in text_ids:
            raise PlaceholderError(
                f"the prompt has more placeholders of the kind {modality} than there are media"
            )


def _round_as_transformers(video: Any, tokens_per_second: float) -> None:
    """Make vLLM cut the time of a patch to the position that transformers cuts it to.

    transformers multiplies in float32, where a product that should be whole is whole. vLLM
    multiplies the same float32 number in float64, where the product is 4.9999 and is cut to 4,
    unless the number is one bit larger.
    """
    seconds = video["second_per_grid_ts"].data
    patches = torch.arange(int(video["video_grid_thw"].data[0]))
    positions = (patches * (tokens_per_second * seconds)).long()
    for candidate in (seconds, torch.nextafter(seconds, torch.tensor(torch.inf))):
        of_vllm = (patches.double() * (candidate.item() * tokens_per_second)).long()
        if torch.equal(of_vllm, positions):
            video["second_per_grid_ts"].data = candidate
            return
