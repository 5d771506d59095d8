"""The model's own chat template and patch size."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from video_pipeline.budget import SIMULATED_PATCH_SIZE
from video_pipeline.errors import TaskError, UserError

SIMULATED_MODEL = "simulated"
"""Stands for the model where none is loaded: a plain ChatML prompt."""

_PROCESSOR_FILES = ["*.json", "*.jinja", "*.txt", "*.model"]


def processor_folder(model: str, revision: str | None = None) -> str:
    """A local folder with the processor of ``model``: itself, or what is fetched from the Hugging
    Face hub if it is not here yet (a few MB, no weights).

    Raises :class:`UserError` where it is not to be had.
    """
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model, revision=revision, allow_patterns=_PROCESSOR_FILES)
    except (OSError, ValueError) as error:
        patterns = " ".join(f"'{pattern}'" for pattern in _PROCESSOR_FILES)
        version = f" --revision {revision}" if revision else ""
        raise UserError(
            f"vllm.model: {model} is no folder here, and the hub does not give its processor: "
            f"{error}. Mend the name; or fetch it where there is a network, to the same HF_HOME: "
            f"hf download {model}{version} --include {patterns}; or name a local folder"
        ) from error


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
            images = getattr(self._processor, "image_processor", None)  # a text model has none
            if images is not None:
                self.patch_size = images.patch_size

    def prompt(self, messages: list[dict[str, Any]]) -> str:
        """The text of the prompt, with the vision placeholders of the chat template.

        Raises :class:`TaskError` for a part of a message that the template would pass over.
        """
        for message in messages:
            _check_parts(message)
        if self._processor is None:
            turns = (
                f"<|im_start|>{m['role']}\n{_text(m['content'])}<|im_end|>\n" for m in messages
            )
            return "".join(turns)
        return self._processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )


_PARTS = ("text", "video", "image", "image_url")


def _check_parts(message: dict[str, Any]) -> None:
    parts = message["content"]
    for part in parts if isinstance(parts, list) else []:
        if not (isinstance(part, dict) and part.keys() & set(_PARTS)):
            names = part if isinstance(part, dict) else ()
            near = [close for name in names for close in get_close_matches(name, _PARTS, n=1)]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TaskError(
                "build_messages: a part of a message must be a dict with one of "
                f"{', '.join(map(repr, _PARTS))}, got {part!r:.200}{hint}"
            )


def check_processor(model: str) -> None:
    """Raise :class:`UserError` if the processor of ``model`` cannot be loaded."""
    try:
        Prompter(model)
    except (OSError, ValueError) as error:
        raise UserError(f"vllm.model: cannot load the processor of {model}: {error}") from error


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
    processor = _processor(model)
    media = llm_input.get("multi_modal_data") or {}
    if not media:
        tokenizer = getattr(processor, "tokenizer", processor)
        return TokenCount(len(tokenizer(llm_input["prompt"])["input_ids"]), 0, 0)
    videos = media.get("video") or []
    inputs = processor(
        text=[llm_input["prompt"]],
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
    return TokenCount(len(ids), sum(int(token) in visual for token in ids), largest)


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


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "<|video_pad|>") for part in content)
