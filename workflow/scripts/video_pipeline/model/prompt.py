"""The model's own chat template: from messages to a prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from video_pipeline.common.faults import failure_of
from video_pipeline.common.suggest import did_you_mean
from video_pipeline.errors import TaskError
from video_pipeline.model.processor import SIMULATED_MODEL, load_processor, load_tokenizer
from video_pipeline.model.special_tokens import SpecialTokenError, SpecialTokens
from video_pipeline.model.token_budget import SIMULATED_PATCH_SIZE
from video_pipeline.tasks.base import Messages


class Prompter:
    """Turns messages into the prompt of a model.

    Attributes:
        patch_size: Width of a vision patch in pixels, 14 or 16.
    """

    def __init__(self, model: str, chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            model: Name or folder of the model.
            chat_template_kwargs: Switches of its chat template.

        Raises:
            OSError, ValueError: it has no processor.
        """
        self._switches = dict(chat_template_kwargs or {})
        self._processor: Any = None
        self.patch_size = SIMULATED_PATCH_SIZE
        if model != SIMULATED_MODEL:
            self._processor = load_processor(model)
            self._special = special_tokens(model)
            images = getattr(self._processor, "image_processor", None)  # A text model has none.
            if images is not None:
                self.patch_size = images.patch_size

    def llm_input(self, messages: Messages) -> dict[str, Any]:
        """Write the prompt of a conversation.

        Returns:
            ``prompt``, with the vision placeholders of the chat template. If the text of a message
            holds special tokens of the model, also ``prompt_token_ids``, in which these are plain
            characters.

        Raises:
            TaskError: The template would pass over a part of a message.
            SpecialTokenError: The model's tokenizer cannot keep text and structure apart.
        """
        for message in messages:
            check_parts(message)
        if self._processor is None:
            return {"prompt": plain_prompt(messages)}
        token = self._special.find(messages)
        if token is None:
            return {"prompt": self._render(messages)}
        prompt, ids = self._special.encode(messages, token, self._render)
        return {"prompt": prompt, "prompt_token_ids": ids}

    def prompt(self, messages: Messages) -> str:
        """The prompt of a conversation as text alone. Raises what :meth:`llm_input` raises, and
        :class:`SpecialTokenError` if only token ids can express the prompt."""
        llm_input = self.llm_input(messages)
        if "prompt_token_ids" in llm_input:
            raise SpecialTokenError(
                f"the text of a message holds {self._special.find(messages)!r}, a special token of "
                "the model; in a text prompt it would act as one. Use "
                "Prompter.llm_input(messages), which also returns token ids"
            )
        return str(llm_input["prompt"])

    def _render(self, messages: Messages) -> str:
        prompt: str = self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._switches
        )
        return prompt


_MEDIA = ("video", "image", "image_url")
_PARTS = ("text", *_MEDIA)


def is_medium(part: Any) -> bool:
    """Whether a part of a message shows a video or an image."""
    return isinstance(part, dict) and not part.keys().isdisjoint(_MEDIA)


def listed_media(llm_input: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The media of an ``llm_input`` by modality, always as lists."""
    media = llm_input.get("multi_modal_data") or {}
    return {
        modality: items if isinstance(items, list) else [items]
        for modality, items in media.items()
        if items is not None
    }


def check_parts(message: dict[str, Any]) -> None:
    """Check that each part of a message is a text, a video or an image. Raises :class:`TaskError`,
    or :class:`ValueError` for a text that is none."""
    parts = message["content"]
    for part in parts if isinstance(parts, list) else []:
        if not (isinstance(part, dict) and len(part.keys() & set(_PARTS)) == 1):
            names = part.keys() - set(_PARTS) if isinstance(part, dict) else ()
            hint = next(filter(None, (did_you_mean(name, _PARTS) for name in names)), "")
            raise TaskError(
                "build_messages: a part of a message must be a dict with exactly one of "
                f"{', '.join(map(repr, _PARTS))}, got {part!r:.200}{hint}"
            )
        # A chat template would write these as Python does, with the special tokens in them.
        if not isinstance(part.get("text", ""), str | int | float):
            raise ValueError(f"the text of a message must be a text, got {part['text']!r:.200}")


@cache
def special_tokens(model: str) -> SpecialTokens:
    """The special tokens of the tokenizer of ``model``."""
    processor, tokenizer = load_processor(model), load_tokenizer(model)
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    placeholders = (getattr(processor, f"{name}_token", None) for name in ("image", "video"))
    return SpecialTokens(tokenizer, str(template), list(filter(None, placeholders)))


def check_processor(model: str) -> None:
    """Raise :class:`UserError` if the processor of ``model`` cannot be loaded, or
    :class:`EnvironmentFault` if it may be loaded later."""
    try:
        Prompter(model)
    except (OSError, ValueError) as error:
        raise failure_of(
            error, f"vllm.model: cannot load the processor of {model}: {error}"
        ) from error


class PlaceholderError(ValueError):
    """A prompt does not have exactly one placeholder for each video and image."""


def check_placeholders(model: str, llm_input: dict[str, Any]) -> None:
    """Raise :class:`PlaceholderError` if a prompt has too few or too many placeholders for its
    media, if the model's processor knows them."""
    if model == SIMULATED_MODEL:
        return
    processor = load_processor(model)
    media = listed_media(llm_input)
    shown: Counter[str] = Counter()
    for modality in ("image", "video"):
        count = len(media.get(modality, ()))
        placeholder = getattr(processor, f"{modality}_token", None)
        if placeholder is not None:
            shown[placeholder] += count
        elif count:
            return
    ids = llm_input.get("prompt_token_ids")
    for placeholder, count in shown.items():
        if ids is None:
            written = llm_input["prompt"].count(placeholder)
        else:
            written = ids.count(load_tokenizer(model).convert_tokens_to_ids(placeholder))
        if written != count:
            raise PlaceholderError(
                f"the prompt has {written} times {placeholder!r} for {count} videos or images of "
                "that kind: the model's chat template must write exactly one for each"
            )


def prompt_of(llm_input: dict[str, Any]) -> str:
    """The prompt of an ``llm_input`` for people; a plain one for messages, which get it later."""
    if "messages" in llm_input:
        return plain_prompt(llm_input["messages"])
    return str(llm_input.get("prompt", ""))


def plain_prompt(messages: Messages) -> str:
    """A prompt of ``messages`` in plain ChatML, if no template of a model can write it."""
    return "".join(
        f"<|im_start|>{message['role']}\n{_text(message['content'])}<|im_end|>\n"
        for message in messages
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "<|video_pad|>") for part in content)
