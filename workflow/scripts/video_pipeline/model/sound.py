"""How a model takes the sound of videos: the rule of its own feature extractor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf

from video_pipeline.model.family import family_of_folder, processor_class
from video_pipeline.model.processor import SIMULATED_MODEL


@dataclass(frozen=True)
class SoundRule:
    """How a model takes sound.

    Attributes:
        rate: Samples per second.
        most_seconds: The longest sound that it does not cut off.
        step: The number of samples must be a multiple of this. Otherwise transformers leaves the
            remainder out, and vLLM adds silence.
    """

    rate: int = 16_000
    most_seconds: float = inf
    step: int = 1


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
    # By default the feature extractor cuts off longer sound without a message.
    cuts = settings.get("truncation", True)
    most_seconds = extractor.chunk_length if cuts else inf
    step = 1 if settings["padding"] == "max_length" else extractor.hop_length
    return SoundRule(extractor.sampling_rate, most_seconds, step)
