"""The sections ``vllm`` and ``sampling``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from video_pipeline.config.section import Count, Name, Section
from video_pipeline.config.vllm_names import wrong_names, wrong_values

FIXED_TEMPLATE_KWARGS = frozenset({"add_generation_prompt", "return_dict", "tokenize"})
"""Arguments of a chat template that have one value here."""


class VllmSection(Section):
    """A section that takes vLLM's own names, too."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _are_vllms(self) -> Self:
        section, settings = type(self).__name__.lower(), self.model_extra or {}
        faults = wrong_names(section, settings, type(self).model_fields)
        if faults := [*faults, *wrong_values(section, settings)]:
            raise ValueError("\n  ".join(faults))
        return self


class Vllm(VllmSection):
    """The model, and any other engine argument of vLLM by its own name. An unknown name and a value
    of a wrong type are errors before the run starts. If another version of vLLM than the tried one
    is installed, they are only warnings, and vLLM itself decides when it starts."""

    model: Name = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A name on the Hugging Face hub, or a local folder."""
    tensor_parallel_size: Count = 1
    """GPUs that share one copy of the model."""
    pipeline_parallel_size: Count = 1
    """Pipeline stages of the model."""
    data_parallel_size: Count = 1
    """Copies of the model in one job."""
    max_model_len: Count = 32768
    """Upper limit on the tokens of prompt and answer together."""

    lora_path: Path | None = None
    """Folder of a LoRA adapter for the model. `null`: none."""
    chat_template_kwargs: dict[str, Any] = Field(default={})
    """Switches of the model's chat template, for every prompt: `{enable_thinking: false}` makes a
    thinking model answer at once."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _prompts_stay_text(cls, switches: dict[str, Any]) -> dict[str, Any]:
        for name in FIXED_TEMPLATE_KWARGS.intersection(switches):
            raise ValueError(f"vllm.chat_template_kwargs.{name}: the pipeline sets this itself")
        return switches

    @property
    def prunes_videos(self) -> bool:
        """Whether vLLM leaves tokens of videos out."""
        return bool(self.number("video_pruning_rate"))

    @property
    def gpus_per_job(self) -> int:
        """GPUs that one inference job needs: tensor x pipeline x data parallel."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def number(self, name: str, default: float = 0.0) -> float:
        """An engine argument as a number: vLLM also takes a text, and null for not set."""
        return float(self.arguments.get(name) or default)

    @property
    def arguments(self) -> dict[str, Any]:
        """All engine arguments, as vLLM gets them."""
        return self.model_dump(exclude={"lora_path", "chat_template_kwargs"})


class Sampling(VllmSection):
    """Any field of vLLM's `SamplingParams` by its own name. Unknown names and wrong types are
    handled as in the section `vllm`."""

    temperature: float = Field(default=0.0, ge=0)
    """0: greedy, which takes the most likely token each time."""
    max_tokens: Count = 512
    """Upper limit on the tokens of an answer."""
