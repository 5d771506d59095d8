"""The section ``run``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from video_pipeline.config.section import Count, Name, NonNegative, Positive, Section
from video_pipeline.config.source import Place, check_folder, scheme_of


class Simulated(Section):
    """How long the simulated engine pretends to compute."""

    seconds_per_prompt_token: NonNegative = 0.0
    """Seconds for each prompt token."""
    seconds_per_output_token: NonNegative = 0.0
    """Seconds for each token of an answer."""
    output_tokens: Count = 16
    """Tokens of an answer."""
    concurrency: Count = 256
    """Requests that it computes at once."""


class Run(Section):
    """The task, the plugins, and how a run behaves."""

    task: Name = "describe"
    """Name of the task: a built-in one, or one of a plugin."""
    dataset: Name | None = None
    """Name of the dataset that reads the samples. `null`: the one that the task names, or else the
    one for the model (`qwen_video` or `video`)."""
    plugins: list[str] = Field(default=[])
    """Python files or modules with tasks and datasets of your own. They are imported at the start.
    """
    engine: Literal["vllm", "simulated"] = "vllm"
    """`vllm`, or `simulated`: made-up answers without a model, for tests and benchmarks."""
    simulated: Simulated = Simulated()
    """Timing of the simulated engine."""
    max_in_flight: Count = 256
    """Upper limit on the requests in the engine at once."""
    engine_timeout_s: Positive = 600.0
    """If the engine has requests and makes no progress for this many seconds, the job fails and is
    started again."""
    retry_truncated: Count | None = None
    """If an answer with an `output_schema` does not end within `sampling.max_tokens`, it is
    generated again, once, with this limit. `null`: it becomes an error record at once. So does an
    answer for which the task itself has set this limit or a larger one."""
    truncated: Literal["keep", "error"] = "keep"
    """What becomes of an answer that was cut off at `sampling.max_tokens`. `keep`: it counts as
    answered. `error`: it becomes an error record of stage `length`, which keeps the text. The
    journal keeps the answer, so a change of this key infers nothing again. An answer with an
    `output_schema`, or without any text yet, becomes an error record in any case."""
    keep_rank_files: bool = False
    """`true`: keep the rank files at the end."""
    max_error_rate: float = Field(default=0.1, ge=0, le=1)
    """Largest share of failed samples in a chunk, checked from the 20th failure on: among its first
    1,000 samples, then among the finished ones. A job above it stops at once. Errors of stage
    `parse` do not count, because their answers are kept."""
    formats: list[Literal["jsonl", "parquet"]] = Field(default=["jsonl"])
    """Formats of the output. `jsonl` is always one of them. `parquet` adds a folder of Parquet
    files with a dataset card for the Hugging Face hub."""
    parquet_columns: Literal["flat", "nested"] = "flat"
    """Columns of the Parquet files. `flat`: `key`, `status`, `error_stage`, `path`, ... `nested`:
    those of the JSON, such as `__key`, `__error` and `input`, with objects in them."""
    publish: list[Place] = Field(default=[])
    """Where output, errors, summary, report and Parquet files are copied at the end:
    `s3://bucket/folder`, `gs://...`, `az://...`, `hf://datasets/owner/name`, or a local folder.
    Credentials come from the environment."""

    @field_validator("formats")
    @classmethod
    def _jsonl_is_always_written(cls, formats: list[str]) -> list[str]:
        if "jsonl" not in formats:
            raise ValueError(
                f"run.formats: {formats} lacks jsonl, which is always written (the other formats "
                "are made of it); add it to the list"
            )
        return formats

    @field_validator("publish")
    @classmethod
    def _are_folders(cls, publish: list[str]) -> list[str]:
        places: list[str] = []
        for place in publish:
            if scheme := scheme_of(place):
                place = f"{scheme}://{place.partition('://')[2].rstrip('/')}"
            try:
                check_folder(place)
            except ValueError as error:
                raise ValueError(f"run.publish: {error}") from None
            if place in places:
                raise ValueError(f"run.publish: {place} is there twice")
            places.append(place)
        return places

    @model_validator(mode="after")
    def _has_a_card(self) -> Run:
        hub = next((place for place in self.publish if scheme_of(place) == "hf"), None)
        if hub and "parquet" not in self.formats:
            raise ValueError(
                f"run.publish: {hub} becomes a dataset with a card, which is written with the "
                "Parquet files: set run.formats to [jsonl, parquet]"
            )
        return self
