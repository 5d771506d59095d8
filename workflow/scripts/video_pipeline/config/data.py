"""The section ``data``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from video_pipeline.config.section import Auto, Count, Name, Positive, Section


class Data(Section):
    """What is read, what is written, and how the samples are prepared."""

    input_jsonl: Path = Field(
        default=Path("samples.jsonl"),
        description="The samples: one JSON object a line. `.gz` and `.zst` are read too.",
    )
    output_jsonl: Path = Field(
        default=Path("results/output.describe.jsonl"),
        description="The consolidated output. Rank files, journal, summary and the resolved "
        "configuration are written beside it.",
    )
    video_field: Name = Field(
        default="path", description="The field that holds the video's path or address."
    )
    video_root: Path | None = Field(
        default=None,
        description="The folder of relative video paths. `null`: the folder of `input_jsonl`.",
    )
    id_field: Name | None = Field(
        default=None,
        description="The field that holds a unique id, used as `__key`. `null`: the key is a hash "
        "of the sample's content.",
    )
    allowed_roots: list[Path] | None = Field(
        default=None,
        description="The folders that local videos and images must lie in, after links and `..` "
        "are followed; anything else gets an error record. Relative ones are relative to the "
        "working directory. `null`: they may lie anywhere.",
    )
    max_download_gb: Positive = Field(
        default=4.0,
        description="Size, in GB, of the largest video that is read by http(s). It is downloaded "
        "to the folder for temporary files (`TMPDIR`).",
    )
    allow_private_addresses: bool = Field(
        default=False,
        description="`true`: videos are also read by http(s) from hosts that are not on the public "
        "internet: this machine, the local network, reserved addresses.",
    )
    resume: bool = Field(
        default=True,
        description="`false`: every invocation starts a new, empty journal (its own retries "
        "continue it).",
    )
    num_shards: Auto | Count = Field(
        default="auto",
        description="How many chunks, and so how many inference jobs. `auto`: (GPUs given to "
        "Snakemake) // (GPUs per job), at least 1.",
    )
    balance: Literal["count", "size", "duration"] = Field(
        default="size",
        description="The weight of a sample when the pending samples are divided into chunks, so "
        "that all jobs end together: 1 each, the size of its file, or its seconds (the field "
        "`duration` of the sample; if it is missing, the header of the file is read).",
    )
    num_workers: Auto | Count = Field(
        default="auto",
        description="Decode processes per rank. `auto`: the cores that Snakemake gave the job, "
        "less one for the engine.",
    )
    sample_timeout_s: Positive = Field(
        default=300.0,
        description="Seconds one sample may take to be read and prepared; then its worker is "
        "killed and the sample gets an error record.",
    )
    worker_memory_gb: Positive | None = Field(
        default=16.0,
        description="Memory, in GB, that one decode process may ask for; a video that needs more "
        "gets an error record. `null`: no limit.",
    )
    max_ready_gb: Positive = Field(
        default=8.0,
        description="Bound, in GB, on the prepared samples held at once: ready plus submitted to "
        "the engine.",
    )

    @field_validator("output_jsonl")
    @classmethod
    def _gives_the_other_files_their_names(cls, path: Path) -> Path:
        if re.search(r"\.rank\d+\.jsonl$", path.name):
            raise ValueError(
                f"data.output_jsonl: {str(path)!r} is the name of a rank file; take another one"
            )
        if not path.name.endswith(".jsonl"):
            raise ValueError(
                f"data.output_jsonl: {str(path)!r} must end with .jsonl (the summary and the rank "
                "files are named after it)"
            )
        return path

    def decode_processes(self, threads: int) -> int:
        """How many decode processes a job with ``threads`` cores has."""
        return max(1, threads - 1) if self.num_workers == "auto" else self.num_workers
