"""Counts the tokens of a sample's prompts, with its dataset and the model's processor."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from video_pipeline.config import Config
from video_pipeline.engine.base import Preparer, RequestRefused
from video_pipeline.errors import Failure
from video_pipeline.model.processor import SIMULATED_MODEL
from video_pipeline.model.prompt import check_processor, listed_media
from video_pipeline.model.token_count import TokenCount, count_tokens
from video_pipeline.tasks.base import ONLY_PART

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset
    from video_pipeline.video.reader import VideoInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownMedium:
    """A video or image that the model sees."""

    num_frames: int  # Sampled frames; 1 for an image.
    info: VideoInfo | None  # The description of a video's file, if it is known.


@dataclass(frozen=True)
class PromptCost:
    """What one conversation about a sample costs."""

    tokens: TokenCount  # Those of its prompt.
    media: tuple[ShownMedium, ...]  # Conversations that show the same medium share the object.


class PromptCounter:
    """Counts the tokens of prompts with their media."""

    def __init__(self, config: Config, model: str) -> None:
        """``model``: ``dataset_model`` of the engine of ``config``."""
        self._config = config
        self._model = model

    def count(self, llm_input: dict[str, Any]) -> TokenCount:
        """The tokens of an ``llm_input``. The model's processor counts them; if the input holds
        messages or tokens are pruned, the engine's own preparation does."""
        if self._model == SIMULATED_MODEL:
            from video_pipeline.engine import simulated

            text = simulated.count_tokens({**llm_input, "multi_modal_data": {}})
            prompt = simulated.count_tokens(llm_input)
            return TokenCount(prompt, prompt - text, 0)
        if "messages" in llm_input or self._config.vllm.prunes_videos:
            return self.of_request(self.request(llm_input))
        return count_tokens(self._model, llm_input)

    def load(self) -> None:
        """Load the libraries that :meth:`request` needs."""
        self._preparer  # noqa: B018 - the first access makes it

    def request(self, llm_input: dict[str, Any]) -> dict[str, Any]:
        """The request that the engine would get. Needs the engine's libraries, but no GPU."""
        media = llm_input.get("multi_modal_data") or {}
        shown = {modality: _black(items) for modality, items in media.items()}
        llm_input = {**llm_input, "multi_modal_data": shown}
        (request,) = self._preparer.prepare({ONLY_PART: llm_input}, "counted").values()
        return dict(request)

    def of_request(self, request: dict[str, Any]) -> TokenCount:
        """The tokens of a :meth:`request`."""
        from video_pipeline.engine.vllm.compat import media_tokens

        of_media = media_tokens(request)
        sounds = of_media.pop("audio", [])
        visual = [tokens for of_modality in of_media.values() for tokens in of_modality]
        tokens = len(request["prompt_token_ids"])
        largest = max([*visual, *sounds], default=0)
        return TokenCount(tokens, sum(visual), largest, sum(sounds))

    @cached_property
    def _preparer(self) -> Preparer:
        from video_pipeline.engine import create_engine

        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # vLLM logs much otherwise.
        preparer = create_engine(self._config, with_videos=False).preparer()
        preparer.start()
        return preparer


class CountingPreparer(Preparer):
    """Counts the tokens of a dataset's inputs, in place of the engine's part."""

    def __init__(self, config: Config, model: str, *, with_engine: bool = False) -> None:
        """
        Args:
            model: ``dataset_model`` of the engine of ``config``.
            with_engine: Whether the engine's own preparation counts. Then its libraries are loaded
                once for all processes.
        """
        self._counter = PromptCounter(config, model)
        self._model = model
        self._with_engine = with_engine

    def start(self) -> None:
        if not self._with_engine:  # Else vLLM loads the processor.
            check_processor(self._model)
        elif self._model != SIMULATED_MODEL:
            self._counter.load()

    def read(self, dataset: BaseDataset, position: int) -> Any:
        """The item of a sample, without pixels unless the dataset looks at them."""
        from video_pipeline.video.errors import VideoReadError
        from video_pipeline.video.reader import measuring

        with measuring():
            try:
                return dataset[position]
            except (VideoReadError, Failure):
                raise
            except Exception as error:  # It fails again below, unless it only lacked pixels.
                logger.debug("measured: %s", error)
        return dataset[position]

    def prepare(self, llm_inputs: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
        media: dict[int, ShownMedium] = {}
        counted = {}
        try:
            for part, llm_input in llm_inputs.items():
                by_modality = listed_media(llm_input)
                by_modality.pop("audio", None)
                shown = [item for items in by_modality.values() for item in items]
                for item in shown:
                    media.setdefault(id(item), _medium(item))
                counted[part] = PromptCost(
                    self._counter.count(llm_input), tuple(media[id(item)] for item in shown)
                )
        except (Failure, RequestRefused):
            raise
        except Exception as error:
            raise RequestRefused(type(error).__name__, str(error)) from error
        return counted


def _black(items: Any) -> Any:
    """Pictures that were only measured, replaced by black ones, which take no memory: the engine's
    preparation needs pixels."""
    import torch  # Not above: processes that only show a plan import this module, too.

    if isinstance(items, list):
        return [_black(item) for item in items]
    if isinstance(items, tuple):
        return (_black(items[0]), *items[1:])
    if isinstance(items, torch.Tensor) and items.is_meta:
        return torch.zeros(1, dtype=items.dtype).expand(items.shape)
    return items


def _medium(item: Any) -> ShownMedium:
    if not isinstance(item, tuple):
        return ShownMedium(1, None)
    frames, metadata = item
    return ShownMedium(len(frames), getattr(metadata, "info", None))
