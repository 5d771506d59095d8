"""Makes the prompt of a conversation as vLLM itself reads the model's chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from video_pipeline.engine.vllm.compat import SampleRenderer, announcement
from video_pipeline.model.chat_template import template_of
from video_pipeline.model.prompt import PlaceholderError, check_parts, is_medium
from video_pipeline.model.special_tokens import SpecialTokens
from video_pipeline.tasks.base import Messages

_PLACEHOLDERS = [
    f"{modality}_token_{kind}" for modality in ("image", "video") for kind in ("id", "index")
]
"""The keys of a model's configuration with the tokens that stand for media."""

_WAYS_OUT = {
    "video": "show it a picture, with run.dataset: first_frame",
    "image": "leave images out of the messages of the task",
}
"""The advice for a model that takes no media of a kind."""


@dataclass
class ConversationRenderer:
    """Makes the prompts of conversations. vLLM knows where each family puts its media, and in which
    form its template takes the content of a message."""

    renderer: SampleRenderer
    model: str
    hf_config: Any
    switches: Mapping[str, Any]  # vllm.chat_template_kwargs

    def with_prompt(
        self, llm_input: Mapping[str, Any], names: Mapping[str, list[str]]
    ) -> dict[str, Any]:
        """``llm_input`` with a prompt in the place of its ``messages``.

        Args:
            names: The names of the media by modality, in the order of the messages.

        Raises:
            TaskError: A part of a message is neither text nor a medium.
            PlaceholderError: The messages do not show each medium once, or the model takes none
                of a kind.
            SpecialTokenError: The tokenizer cannot keep text and structure apart.
        """
        for modality in names:
            if names[modality] and not self.renderer.takes(modality):
                raise PlaceholderError(
                    f"the model takes no {modality}: {_WAYS_OUT[modality]}, or name another model"
                )
        fields = {name: value for name, value in llm_input.items() if name != "messages"}
        return {**fields, **self._prompt(llm_input["messages"], names)}

    def _prompt(self, messages: Messages, names: Mapping[str, list[str]]) -> dict[str, Any]:
        render = partial(self._render, names=names)
        rendered = render(messages)
        if "prompt" not in rendered:
            return rendered
        # The template writes all special tokens: the tokenizer must not add its own.
        token = self._special_tokens.find(messages)
        if token is None:
            encoded = self.renderer.tokenizer(rendered["prompt"], add_special_tokens=False)
            return {**rendered, "prompt_token_ids": list(encoded["input_ids"])}
        prompt, ids = self._special_tokens.encode(
            messages, token, lambda hidden: str(render(hidden)["prompt"]), add_special_tokens=False
        )
        return {"prompt": prompt, "prompt_token_ids": ids}

    def _render(self, messages: Messages, names: Mapping[str, list[str]]) -> dict[str, Any]:
        return self.renderer.render_messages(announced(messages, names), self.switches)

    @cached_property
    def _special_tokens(self) -> SpecialTokens:
        tokenizer = self.renderer.tokenizer
        ids = (getattr(self.hf_config, name, None) for name in _PLACEHOLDERS)
        placeholders = tokenizer.convert_ids_to_tokens([id for id in ids if isinstance(id, int)])
        return SpecialTokens(tokenizer, template_of(Path(self.model)), placeholders)


def announced(messages: Messages, names: Mapping[str, list[str]]) -> Messages:
    """``messages`` in vLLM's form, with an announcement in the place of each medium.

    Raises:
        TaskError: A part of a message is neither text nor a medium.
        PlaceholderError: The messages do not show each medium once.
    """
    # The sound of a video has no part of its own.
    waiting = {modality: iter(names[modality]) for modality in names if modality != "audio"}

    def announced_part(part: dict[str, Any]) -> dict[str, Any]:
        if not is_medium(part):
            return {"type": "text", "text": part["text"]}
        modality = "video" if "video" in part else "image"
        name = next(waiting.get(modality, iter(())), None)
        if name is None:
            raise PlaceholderError(f"the messages show more media of the kind {modality} than came")
        return announcement(modality, name)

    result = []
    for message in messages:
        check_parts(message)
        content = message["content"]
        if isinstance(content, list):
            content = list(map(announced_part, content))
        result.append({**message, "content": content})
    for modality, unused_names in waiting.items():
        if next(unused_names, None) is not None:
            raise PlaceholderError(
                f"the messages show fewer media of the kind {modality} than came"
            )
    return result
