"""The section ``data``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from video_pipeline.common.condition import Condition
from video_pipeline.config.section import Auto, Count, Name, Positive, Section
from video_pipeline.config.source import Place, Source, scheme_of, tidy


class Data(Section):
    """Input, output, and how samples are prepared."""

    input_jsonl: Place = "samples.jsonl"
    """The samples: a JSONL (one JSON object a line), a list of paths (`.txt`), a table (`.csv`,
    `.tsv`, `.parquet`), a `.tar`, a folder of videos, or a pattern such as `clips/**/*.mp4`; here
    or at an address (`s3://`, ...). See [Input](../docs/input.md)."""
    output_jsonl: Path = Path("results/output.describe.jsonl")
    """The output. Rank files, journal, summary and the complete configuration are written beside
    it."""
    video_field: Name = "path"
    """The field with the path or address of the video."""
    video_root: Place | None = None
    """The folder that relative video paths start from. `null`: the folder of `input_jsonl`, or
    `input_jsonl` itself if it is a folder."""
    id_field: Name | None = None
    """The field with a unique id, which becomes `__key`. `null`: the key is a hash of the sample's
    content."""
    where: str | None = None
    """Only samples for which this condition holds are asked about, such as `duration >= 2 and
    previous.is_safe`. The others become records with the status `left_out`. A change infers nothing
    again. See [Choose samples](../docs/stages.md#choose-samples)."""
    group_by: Literal["video"] | None = None
    """`video`: the windows of a video, from an earlier stage, become one sample, with their records
    in `previous.clips`."""
    allowed_roots: list[Place] | None = None
    """Local videos and images must lie in these folders, after links and `..` are followed, and
    those in stores under these addresses (`s3://bucket/clips`); others become error records.
    Relative folders start from the working directory. `null`: they may lie anywhere."""
    max_download_gb: Positive = 4.0
    """Largest video that is downloaded, in GB. It goes to the folder for temporary files
    (`TMPDIR`)."""
    allow_private_addresses: bool = False
    """`true`: also download from hosts that are not on the public internet: this machine, the local
    network, reserved addresses."""
    resume: bool = True
    """`false`: each invocation starts a new, empty journal. Retries within an invocation still
    continue from it."""
    num_shards: Auto | Count = "auto"
    """Number of chunks, and of inference jobs. `auto`: (GPUs given to Snakemake) // (GPUs of a
    job), at least 1."""
    balance: Literal["count", "size", "duration"] = "size"
    """Weight of a sample when pending samples are divided into chunks, so that all jobs end
    together. `count`: 1 each. `size`: the size of its file. `duration`: its seconds, from the field
    `duration` or else from the header of its file."""
    num_workers: Auto | Count = "auto"
    """Decode processes of each job. `auto`: one for each core that Snakemake gives the job; they
    yield to the engine."""
    sample_timeout_s: Positive = 300.0
    """Seconds to read and prepare one sample. After that its decode process is killed, and the
    sample becomes an error record."""
    worker_memory_gb: Positive | None = 16.0
    """Memory that one decode process may allocate, in GB. A video that needs more becomes an error
    record. `null`: no limit."""
    max_ready_gb: Positive = 8.0
    """Memory for prepared samples of a job, in GB: those that wait and those in the engine."""

    @field_validator("output_jsonl", mode="before")
    @classmethod
    def _lies_in_a_file_system(cls, path: object) -> object:
        if scheme_of(str(path)):
            raise ValueError(
                f"data.output_jsonl: {str(path)!r:.200} must be a path: a journal grows line by "
                "line and is locked, which stores cannot do. To have the output copied there at "
                "the end, set run.publish"
            )
        return tidy(path)

    @field_validator("output_jsonl")
    @classmethod
    def _gives_the_other_files_their_names(cls, path: Path) -> Path:
        if re.search(r"\.rank\d+\.jsonl$", path.name):
            raise ValueError(
                f"data.output_jsonl: {str(path)!r} is the name of a rank file; take another one"
            )
        if path.suffix != ".jsonl":  # That of `.jsonl` is empty.
            raise ValueError(
                f"data.output_jsonl: {str(path)!r} must be a name that ends with .jsonl (the "
                "summary and the rank files are named after it)"
            )
        return path

    @property
    def source(self) -> Source:
        """What :attr:`input_jsonl` names."""
        return Source(self.input_jsonl)

    @property
    def root(self) -> str:
        """Where relative paths of videos start. A single video is in its own folder."""
        own = self.source.root
        return own if self.source.kind == "video" else self.video_root or own

    @field_validator("where")
    @classmethod
    def _is_a_condition(cls, where: str | None) -> str | None:
        if where is not None:
            try:
                Condition(where)
            except ValueError as error:
                raise ValueError(f"data.where: {error} (in {where!r:.200})") from None
        return where

    def replaces(self, path: Path | str) -> bool:
        """Whether ``path`` is the output, or a file beside it that a run writes and others read."""
        stem = re.escape(os.path.abspath(self.output_jsonl).removesuffix(".jsonl"))
        pattern = rf"{stem}(\.(errors|partial|plan|rank\d+|videos))?\.jsonl"
        return re.fullmatch(pattern, os.path.abspath(path)) is not None

    def decode_processes(self, threads: int) -> int:
        """How many decode processes a job with ``threads`` cores has."""
        return max(1, threads) if self.num_workers == "auto" else self.num_workers
