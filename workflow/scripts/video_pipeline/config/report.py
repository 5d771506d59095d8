"""The sections ``plan`` and ``report``."""

from __future__ import annotations

from pydantic import Field, model_validator

from video_pipeline.config.section import Count, NonNegative, Positive, Section


class Planning(Section):
    """What `snakemake plan` reads and assumes. It changes nothing about a run."""

    samples: Count | None = Field(
        default=None,
        description="Look at so many samples, drawn at random (always the same ones); totals are "
        "scaled up. `null`: at all of them.",
    )
    prompt_tokens_per_second: Positive | None = Field(
        default=None,
        description="Prompt tokens that one GPU processes in a second. `null`: as measured by "
        "earlier attempts of this output with the same task, model and settings, or by other "
        "outputs beside it with the same model on a known card; otherwise no GPU-hours are "
        "estimated.",
    )
    completion_tokens_per_second: Positive | None = Field(
        default=None, description="Answer tokens that one GPU generates in a second. Likewise."
    )
    expected_completion_tokens: Positive | None = Field(
        default=None,
        description="Tokens of an answer, on average. `null`: as measured by attempts of this "
        "output with the same task, model and settings, or `sampling.max_tokens`, the worst case.",
    )
    price_per_gpu_hour: NonNegative | None = Field(
        default=None, description="In any currency. `null`: no cost."
    )

    @model_validator(mode="after")
    def _both_rates(self) -> Planning:
        if (self.prompt_tokens_per_second is None) != (self.completion_tokens_per_second is None):
            raise ValueError(
                "plan: give both plan.prompt_tokens_per_second and "
                "plan.completion_tokens_per_second, or neither"
            )
        return self


class Report(Section):
    """The page about a run. It changes no answer: another value writes the page again."""

    samples: int = Field(
        default=60,
        ge=0,
        description="Answered samples in the gallery, at most, and pictures of a quarter as many "
        "failed ones; their videos are read again. 0: no gallery of answers, and no pictures.",
    )
    seed: int = Field(default=0, description="Chooses the samples.")
