"""The sections ``plan`` and ``report``."""

from __future__ import annotations

from pydantic import Field, model_validator

from video_pipeline.config.section import Count, NonNegative, Positive, Section


class Planning(Section):
    """What `snakemake plan` reads and assumes. No key here changes a run."""

    samples: Count | None = None
    """Number of samples to look at, drawn at random, but the same ones each time; totals are scaled
    up. `null`: all."""
    prompt_tokens_per_second: Positive | None = None
    """Prompt tokens that one GPU processes in a second. `null`: the rate that earlier attempts of
    this output measured with the same task, model and settings, or else other outputs in the same
    folder with the same model on a known GPU. Without any, no GPU-hours are estimated."""
    completion_tokens_per_second: Positive | None = None
    """Answer tokens that one GPU generates in a second. `null`: as for `prompt_tokens_per_second`.
    """
    expected_completion_tokens: Positive | None = None
    """Mean number of tokens of an answer. `null`: the mean of earlier attempts of this output with
    the same task, model and settings, or else `sampling.max_tokens`, the worst case."""
    price_per_gpu_hour: NonNegative | None = None
    """Price of a GPU-hour, in any currency. `null`: no cost is shown."""

    @model_validator(mode="after")
    def _both_rates(self) -> Planning:
        if (self.prompt_tokens_per_second is None) != (self.completion_tokens_per_second is None):
            raise ValueError(
                "plan: give both plan.prompt_tokens_per_second and "
                "plan.completion_tokens_per_second, or neither"
            )
        return self


class Report(Section):
    """The page about a run. A change of these keys only writes the page again."""

    samples: int = Field(default=60, ge=0)
    """Number of answered samples in the gallery. A quarter as many failed samples have pictures,
    too. These videos are read again. 0: no answered samples, and no pictures."""
    seed: int = 0
    """Chooses which samples are shown."""
