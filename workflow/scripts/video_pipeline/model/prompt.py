"""The model's own chat template and patch size."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_pipeline.budget import SIMULATED_PATCH_SIZE
from video_pipeline.errors import Failure, TaskError
from video_pipeline.faults import failure_of, is_environment_fault
from video_pipeline.model.special_tokens import SpecialTokenError, SpecialTokens
from video_pipeline.suggest import did_you_mean

if TYPE_CHECKING:
    from video_pipeline.config import Config
    from video_pipeline.tasks.base import Messages

logger = logging.getLogger(__name__)

SIMULATED_MODEL = "simulated"
"""Stands for the model where none is loaded: a plain ChatML prompt."""

_HUB_WAITS = (5.0, 30.0)
"""Seconds until a hub that is busy or away is asked again."""

PROCESSOR_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
"""The files of a model that are not weights."""


def dataset_model(config: Config) -> str:
    """The ``model`` of the datasets if no engine is there to name it: a local folder, or
    :data:`SIMULATED_MODEL`. Raises what :func:`processor_folder` does."""
    if config.run.engine == "simulated":
        return SIMULATED_MODEL
    return processor_folder(config.vllm.model, config.vllm.arguments.get("revision"))


def processor_folder(model: str, revision: str | None = None) -> str:
    """A local folder with the processor of ``model``: itself, or what is fetched from the Hugging
    Face hub if it is not here yet (a few MB, no weights).

    Raises :class:`UserError` where it is not available, and :class:`EnvironmentFault` where it may
    be later.
    """
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    for seconds in (*_HUB_WAITS, None):
        try:
            return snapshot_download(model, revision=revision, allow_patterns=PROCESSOR_FILES)
        except (OSError, ValueError) as error:
            if seconds is None or not is_environment_fault(error):
                raise _no_processor(model, revision, error) from error
            logger.warning("the hub does not answer, asked again in %g s: %s", seconds, error)
            time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _no_processor(model: str, revision: str | None, error: Exception) -> Failure:
    patterns = " ".join(f"'{pattern}'" for pattern in PROCESSOR_FILES)
    version = f" --revision {revision}" if revision else ""
    later = is_environment_fault(error)
    return failure_of(
        error,
        f"vllm.model: {model} is no folder here, and the hub does not give its processor: {error}. "
        f"{'Run the same command again later' if later else 'Fix the name'}; or fetch it where "
        f"there is a network, to the same HF_HOME: hf download {model}{version} --include "
        f"{patterns}; or name a local folder",
    )


class Prompter:
    """Turns messages into the prompt of a model.

    Attributes:
        patch_size: Width of a vision patch in pixels, 14 or 16.
    """

    def __init__(self, model: str) -> None:
        """Raises :class:`OSError` or :class:`ValueError` if ``model`` has no processor."""
        self._processor = None
        self.patch_size = SIMULATED_PATCH_SIZE
        if model != SIMULATED_MODEL:
            self._processor = _processor(model)
            self._special = special_tokens(model)
            images = getattr(self._processor, "image_processor", None)  # a text model has none
            if images is not None:
                self.patch_size = images.patch_size

    def llm_input(self, messages: Messages) -> dict[str, Any]:
        """The ``prompt`` of an ``llm_input``, with the vision placeholders of the chat template.
        Where the text of a message holds special tokens of the model, ``prompt_token_ids`` stands
        beside it, in which these are plain characters.

        Raises :class:`TaskError` for a part of a message that the template would pass over and
        :class:`SpecialTokenError` if the model's tokenizer cannot keep text and structure apart.
        """
        for message in messages:
            _check_parts(message)
        if self._processor is None:
            turns = (
                f"<|im_start|>{m['role']}\n{_text(m['content'])}<|im_end|>\n" for m in messages
            )
            return {"prompt": "".join(turns)}
        token = self._special.find(messages)
        if token is None:
            return {"prompt": self._render(messages)}
        prompt, ids = self._special.encode(messages, token, self._render)
        return {"prompt": prompt, "prompt_token_ids": ids}

    def prompt(self, messages: Messages) -> str:
        """The text of the prompt alone.

        Raises what :meth:`llm_input` does, and :class:`SpecialTokenError` for a prompt that only
        token ids can tell.
        """
        llm_input = self.llm_input(messages)
        if "prompt_token_ids" in llm_input:
            raise SpecialTokenError(
                f"the text of a message holds {self._special.find(messages)!r}, a special token of "
                "the model; in a text prompt it would act as one. Use "
                "Prompter.llm_input(messages), which also returns token ids"
            )
        return llm_input["prompt"]

    def _render(self, messages: Messages) -> str:
        return self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


_MEDIA = ("video", "image", "image_url")
_PARTS = ("text", *_MEDIA)


def is_medium(part: Any) -> bool:
    """Whether a part of a message shows a video or an image."""
    return isinstance(part, dict) and not part.keys().isdisjoint(_MEDIA)


def _check_parts(message: dict[str, Any]) -> None:
    parts = message["content"]
    for part in parts if isinstance(parts, list) else []:
        if not (isinstance(part, dict) and part.keys() & set(_PARTS)):
            names = part if isinstance(part, dict) else ()
            hint = next(filter(None, (did_you_mean(str(name), _PARTS) for name in names)), "")
            raise TaskError(
                "build_messages: a part of a message must be a dict with one of "
                f"{', '.join(map(repr, _PARTS))}, got {part!r:.200}{hint}"
            )


def check_processor(model: str) -> None:
    """Raise :class:`UserError` if the processor of ``model`` cannot be loaded."""
    try:
        Prompter(model)
    except (OSError, ValueError) as error:
        raise failure_of(
            error, f"vllm.model: cannot load the processor of {model}: {error}"
        ) from error


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a prompt.

    Attributes:
        prompt: All of them.
        visual: Those that stand for pictures.
        largest: Of these, those of the largest image or video.
    """

    prompt: int
    visual: int
    largest: int


def count_tokens(model: str, llm_input: dict[str, Any]) -> TokenCount | None:
    """What a prompt with its media costs, by the model's own processor; None where there is no
    model.

    The processor gets pictures without pixels (torch's device ``meta``), so that it does all but
    the work on them.
    """
    if model == SIMULATED_MODEL:
        return None
    check_placeholders(model, llm_input)
    processor, tokenizer = _processor(model), _tokenizer(model)
    media = llm_input.get("multi_modal_data") or {}
    given = llm_input.get("prompt_token_ids")
    if not media:
        ids = tokenizer(llm_input["prompt"])["input_ids"] if given is None else given
        return TokenCount(len(ids), 0, 0)
    # processors take text only: what becomes of the placeholders does not depend on the rest
    text = llm_input["prompt"] if given is None else special_tokens(model).skeleton(given)
    rest = 0 if given is None else len(given) - len(tokenizer(text)["input_ids"])
    videos = media.get("video") or []
    inputs = processor(
        text=[text],
        images=[_without_pixels(image) for image in media.get("image") or []] or None,
        videos=[_without_pixels(frames) for frames, _ in videos] or None,
        video_metadata=[metadata for _, metadata in videos] or None,
        **{**(llm_input.get("mm_processor_kwargs") or {}), "do_sample_frames": False},
    )
    ids = inputs["input_ids"][0]
    visual = {processor.image_token_id, processor.video_token_id}
    merged = processor.image_processor.merge_size**2
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs]
    largest = max(int(grid.prod(-1).max()) // merged for grid in grids)
    return TokenCount(len(ids) + rest, sum(int(token) in visual for token in ids), largest)


class PlaceholderError(ValueError):
    """A prompt does not have exactly one placeholder for each video and image."""


def check_placeholders(model: str, llm_input: dict[str, Any]) -> None:
    """Compare the placeholders in a prompt with its media, if the model's processor knows them.

    Raises :class:`PlaceholderError` if there are too few or too many.
    """
    if model == SIMULATED_MODEL:
        return
    processor = _processor(model)
    media = llm_input.get("multi_modal_data") or {}
    shown: Counter[str] = Counter()
    for modality in ("image", "video"):
        items = media.get(modality)
        count = len(items) if isinstance(items, list) else int(items is not None)
        placeholder = getattr(processor, f"{modality}_token", None)
        if placeholder is not None:
            shown[placeholder] += count
        elif count:
            return
    ids = llm_input.get("prompt_token_ids")
    for placeholder, count in shown.items():
        if ids is None:
            found = llm_input["prompt"].count(placeholder)
        else:
            found = ids.count(_tokenizer(model).convert_tokens_to_ids(placeholder))
        if found != count:
            raise PlaceholderError(
                f"the prompt has {found} times {placeholder!r} for {count} videos or images of "
                "that kind: the model's chat template must write exactly one for each"
            )


@cache
def special_tokens(model: str) -> SpecialTokens:
    """The special tokens of the tokenizer of ``model``."""
    processor, tokenizer = _processor(model), _tokenizer(model)
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    placeholders = (getattr(processor, f"{name}_token", None) for name in ("image", "video"))
    return SpecialTokens(tokenizer, str(template), [each for each in placeholders if each])


def _without_pixels(picture: Any) -> Any:
    """A picture or frames of the same shape on torch's device ``meta``, where they can be had."""
    import torch  # not above: jobs that never count import this module, too
    from PIL import Image

    if isinstance(picture, torch.Tensor):
        return picture.to("meta")
    if isinstance(picture, Image.Image) and picture.mode == "RGB":
        return torch.empty((3, picture.height, picture.width), dtype=torch.uint8, device="meta")
    return picture


@cache
def _processor(model: str) -> Any:
    from transformers import AutoProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()  # its advice on sampling and resizing: both are done already
    # said aloud: left to itself, transformers asks at the terminal whether to run the code
    return AutoProcessor.from_pretrained(model, trust_remote_code=False)


def _tokenizer(model: str) -> Any:
    processor = _processor(model)
    return getattr(processor, "tokenizer", processor)  # that of a text model is its processor


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "<|video_pad|>") for part in content)
