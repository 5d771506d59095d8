"""Counts the tokens of a prompt with its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from video_pipeline.model.processor import load_processor, load_tokenizer
from video_pipeline.model.prompt import check_placeholders, listed_media, special_tokens


@dataclass(frozen=True)
class TokenCount:
    """Tokens of a prompt: all of them, those that stand for pictures, those of the largest image,
    video or sound, and those that stand for sound."""

    prompt: int
    visual: int
    largest: int
    sound: int = 0


def count_tokens(model: str, llm_input: dict[str, Any]) -> TokenCount:
    """Count the tokens of a prompt with its media, by the model's own processor. It gets pictures
    without pixels, which saves the work on them. Raises :class:`PlaceholderError` if the prompt
    does not show each medium once."""
    check_placeholders(model, llm_input)
    processor, tokenizer = load_processor(model), load_tokenizer(model)
    media = listed_media(llm_input)
    prompt_ids = llm_input.get("prompt_token_ids")
    if not media:
        ids = tokenizer(llm_input["prompt"])["input_ids"] if prompt_ids is None else prompt_ids
        return TokenCount(len(ids), 0, 0)
    # Processors take only text. Plain text does not change how they replace placeholders.
    text = llm_input["prompt"] if prompt_ids is None else special_tokens(model).skeleton(prompt_ids)
    plain = 0 if prompt_ids is None else len(prompt_ids) - len(tokenizer(text)["input_ids"])
    videos = media.get("video", ())
    inputs = processor(
        text=[text],
        images=[_without_pixels(image) for image in media.get("image", ())] or None,
        videos=[_without_pixels(frames) for frames, _ in videos] or None,
        video_metadata=[metadata for _, metadata in videos] or None,
        **{**(llm_input.get("mm_processor_kwargs") or {}), "do_sample_frames": False},
    )
    ids = inputs["input_ids"][0]
    visual = {processor.image_token_id, processor.video_token_id}
    merged = processor.image_processor.merge_size**2
    grids = [inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs]
    largest = max(int(grid.prod(-1).max()) // merged for grid in grids)
    return TokenCount(len(ids) + plain, sum(int(token) in visual for token in ids), largest)


def _without_pixels(picture: Any) -> Any:
    """A picture or frames of the same shape on torch's device ``meta``, if it has such a form."""
    import torch  # Not above: jobs that never count import this module, too.
    from PIL import Image

    if isinstance(picture, torch.Tensor):
        return picture.to("meta")
    if isinstance(picture, Image.Image) and picture.mode == "RGB":
        return torch.empty((3, picture.height, picture.width), dtype=torch.uint8, device="meta")
    return picture
