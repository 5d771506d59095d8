"""The model's own chat template and patch size."""

from __future__ import annotations

from typing import Any

from video_pipeline.budget import SIMULATED_PATCH_SIZE

SIMULATED_MODEL = "simulated"
"""Stands for the model where none is loaded: a plain ChatML prompt."""


class Prompter:
    """Turns messages into the prompt of a model.

    Attributes:
        patch_size: Width of a vision patch in pixels, 14 or 16.
    """

    def __init__(self, model: str) -> None:
        self._processor = None
        self.patch_size = SIMULATED_PATCH_SIZE
        if model != SIMULATED_MODEL:
            from transformers import AutoProcessor

            # said aloud: left to itself, transformers asks at the terminal whether to run the code
            self._processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)
            images = getattr(self._processor, "image_processor", None)  # a text model has none
            if images is not None:
                self.patch_size = images.patch_size

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """The text of the prompt, with the vision placeholders of the chat template."""
        if self._processor is None:
            turns = (
                f"<|im_start|>{m['role']}\n{_text(m['content'])}<|im_end|>\n" for m in messages
            )
            return "".join(turns)
        return self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "<|video_pad|>") for part in content)
