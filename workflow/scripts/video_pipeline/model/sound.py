"""What a family of models wants to hear: the rule of its own feature extractor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf

from video_pipeline.model.family import family_of_folder, processor_class
from video_pipeline.model.processor import SIMULATED_MODEL


@dataclass(frozen=True)
class SoundRule:
    """How a model takes sound: samples per second, and the most seconds that it does not cut
    off."""

    rate: int = 16_000
    most_seconds: float = inf


@cache
def sound_rule(model: str) -> SoundRule | None:
    """The rule of ``model``, loaded once in a process; None if it hears no videos."""
    if model == SIMULATED_MODEL:
        return SoundRule()
    if family_of_folder(model) != "qwen_omni":
        return None
    import transformers

    extractor = transformers.AutoFeatureExtractor.from_pretrained(  # type: ignore[no-untyped-call]
        model, trust_remote_code=False
    )
    processor = getattr(transformers, processor_class(model) or "Qwen2_5OmniProcessor")
    settings = processor.valid_processor_kwargs._defaults["audio_kwargs"]
    # Of its own accord the feature extractor cuts off what is longer, and says nothing.
    cuts = settings.get("truncation", True)
    return SoundRule(extractor.sampling_rate, extractor.chunk_length if cuts else inf)
