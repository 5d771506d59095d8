"""The section ``run``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from video_pipeline.config.section import Count, Name, NonNegative, Positive, Section


class Simulated(Section):
    """How long the simulated engine pretends to compute."""

    seconds_per_prompt_token: NonNegative = Field(
        default=0.0, description="Seconds a prompt token costs."
    )
    seconds_per_output_token: NonNegative = Field(
        default=0.0, description="Seconds an answer token costs."
    )
    output_tokens: Count = Field(default=16, description="Tokens of an answer.")
    concurrency: Count = Field(default=256, description="Requests that are computed at once.")


class Run(Section):
    """The task, and how the run behaves."""

    task: Name = Field(default="describe", description="A registered task.")
    dataset: Name | None = Field(
        default=None,
        description="A registered dataset that reads the samples. `null`: the task's own.",
    )
    plugins: list[str] = Field(
        default=[],
        description="Python files or modules to import, so that their tasks and datasets register.",
    )
    engine: Literal["vllm", "simulated"] = Field(
        default="vllm",
        description="`simulated` answers with text made from the key, for tests and benchmarks.",
    )
    simulated: Simulated = Field(default=Simulated(), description="Timing of the simulated engine.")
    max_in_flight: Count = Field(
        default=256, description="Requests submitted to the engine at once, at most."
    )
    engine_timeout_s: Positive = Field(
        default=600.0,
        description="Seconds without a sign of life from an engine that has requests, after which "
        "the job fails and is started again.",
    )
    retry_truncated: Count | None = Field(
        default=None,
        description="An answer with an `output_schema` that did not end within "
        "`sampling.max_tokens` is generated once more with this limit. `null`: it is an error "
        "record at once.",
    )
    truncated: Literal["keep", "error"] = Field(
        default="keep",
        description="How an answer that was cut off at `sampling.max_tokens` counts: `keep` counts "
        "it as answered, `error` makes it an error record of stage `length` that keeps the text. "
        "The journal has the answer either way: a change infers nothing again. An answer with an "
        "`output_schema`, or without any text yet, is an error record in any case.",
    )
    keep_rank_files: bool = Field(default=False, description="Keep the rank files at the end.")
    max_error_rate: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Failed / finished samples of a chunk, at most; checked from the 20th failure "
        "on. A shard with more stops at once. Errors of stage `parse` do not count: their answers "
        "are kept.",
    )
    formats: list[Literal["jsonl", "parquet"]] = Field(
        default=["jsonl"],
        description="The formats of the output. `jsonl` is always one of them; `parquet` also "
        "writes a folder of Parquet files with a dataset card, ready for a hub.",
    )

    @field_validator("formats")
    @classmethod
    def _jsonl_is_always_written(cls, formats: list[str]) -> list[str]:
        if "jsonl" not in formats:
            raise ValueError(
                f"run.formats: {formats} lacks jsonl, which is always written (the other formats "
                "are made of it); add it to the list"
            )
        return formats
