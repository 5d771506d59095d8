"""Open failed samples again, so that the next ``snakemake`` infers just those.

python -m video_pipeline.retry --configfile my.yaml [--stage read]
"""

from __future__ import annotations

import argparse
from collections.abc import Container
from pathlib import Path

from video_pipeline import cli
from video_pipeline.chunks import Chunk
from video_pipeline.config import Config, load_config
from video_pipeline.errors import UserError
from video_pipeline.journal import (
    REOPENS,
    JournalIndex,
    JournalReader,
    JournalWriter,
)
from video_pipeline.layout import Layout
from video_pipeline.plan import read_plan
from video_pipeline.sharding import Manifest, refuse_live_writers

STAGES = ("read", "timeout", "crash", "generate", "length", "quarantine")
"""Stages that inference can end in. ``parse`` is not among them: answers are parsed anew anyway."""


def retry(config: Config, stages: Container[str] = STAGES) -> int:
    """Open the errors of ``stages`` again and remove the output; returns how many there were.

    Raises :class:`UserError` if nothing has run yet, or while a run is on.
    """
    if not _has_run(config):
        output = config.data.output_jsonl
        raise UserError(f"{output}: nothing has run yet, there is nothing to retry")
    plan = read_plan(Layout.of(config, 0).plan)
    layout = Layout.of(config, plan.num_shards)
    if plan.run_id:
        raise UserError("data.resume is false: every invocation starts from nothing anyway")
    refuse_live_writers(layout)
    manifest = Manifest.read(layout.manifest)
    journal = Path(manifest.journal)
    total = 0
    index = manifest.read_index()
    for rank in range(manifest.num_shards):
        count = reopen_errors(manifest.open_chunk(layout, rank), index, journal, stages)
        if count:
            layout.rank_file(rank).unlink(missing_ok=True)
        total += count
    if total:
        layout.output.unlink(missing_ok=True)
    return total


def _has_run(config: Config) -> bool:
    plan = read_plan(Layout.of(config, 0).plan)
    return plan is not None and Layout.of(config, plan.num_shards).manifest.exists()


def reopen_errors(chunk: Chunk, index: JournalIndex, journal: Path, stages: Container[str]) -> int:
    """Append a reopen record for every error of ``chunk`` whose stage is among ``stages``; returns
    how many samples they belong to."""
    count = 0
    with JournalReader(journal, index) as reader, JournalWriter(journal, REOPENS) as writer:
        for entry in chunk:
            reopened = 0
            for question in entry.questions:
                known = entry.done.get(question.part)
                place = index.find(*question, known)
                if place is None or not place.is_error:  # most records are answers: not read
                    continue
                finished = reader.find(*question, known)
                error = finished and finished.record.get("__error")
                if error and error["stage"] in stages:
                    for file in {finished.place.file, *index.deaths(*question)}:
                        writer.reopen(*question, file)
                    reopened = 1
            count += reopened
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--configfile", type=Path, required=True, help="the configuration of the run"
    )
    parser.add_argument("--directory", type=Path, help="the working directory of the run")
    parser.add_argument("--stage", choices=STAGES, help="only failures of this stage")
    args = parser.parse_args()
    config = load_config(args.configfile)
    if args.directory:
        cli.enter(args.directory)
    stages = (args.stage,) if args.stage else STAGES
    first, *later = (own for _, own in config.by_stage())
    # a stage is not begun before the one ahead of it has ended
    count = sum(retry(own, stages) for own in (first, *filter(_has_run, later)))
    print(
        f"{count} failed sample(s) are open again; run snakemake to infer them"
        if count
        else "no failed samples to retry"
    )
    is_strict = any(own.run.truncated == "error" for own in (first, *later))
    if "length" in stages and (is_strict or not count):
        print(
            "answers that were cut off (stage length) would be cut off again: raise "
            "sampling.max_tokens, which infers all samples again"
        )


if __name__ == "__main__":
    cli.run(main)
