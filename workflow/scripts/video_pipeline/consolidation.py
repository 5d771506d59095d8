"""Consolidate: the rank files become one output, in input order, with a summary and a list of the
failed samples; before that, what is finished so far."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from pathlib import Path
from typing import Any

import orjson

from video_pipeline import versions
from video_pipeline.answers import describe_cut_off, describe_unparsed
from video_pipeline.chunks import ChunkEntry, not_of_this_split, read_lines
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.files import EMPTY, Seal, replacing, write_text
from video_pipeline.journal import JournalReader
from video_pipeline.layout import Layout
from video_pipeline.progress import Progress
from video_pipeline.rank_files import RankContents, RankFile
from video_pipeline.records import Records
from video_pipeline.run.manifest import Manifest
from video_pipeline.statistics import OVER_TIME, read_statistics
from video_pipeline.tasks.registry import load_task
from video_pipeline.throughput import cost, throughput
from video_pipeline.windows import by_video

logger = logging.getLogger(__name__)


def consolidate(config: Config, layout: Layout) -> None:
    """Merge the rank files into ``data.output_jsonl``; write the summary, and the records of the
    failed samples, which are an input that can be run again.

    Raises :class:`UserError` naming the file, and where it can the line and the sample, if one is
    not what ``split`` wrote, or what ``infer`` wrote for its chunk.
    """
    manifest = Manifest.of(config, layout)
    rank_files = [RankFile(layout, manifest, rank) for rank in range(manifest.num_shards)]
    _check_answered(config, layout, manifest, [rank_file.contents for rank_file in rank_files])
    order, written = manifest.read_order(layout), 0
    with (
        Progress(layout.progress("consolidate"), "consolidate", "samples", len(order)) as progress,
        replacing(layout.errors) as failed,
        replacing(layout.output) as output,
    ):
        sealed = EMPTY
        lines = [rank_file.lines(failed) for rank_file in rank_files]
        for begin in range(0, len(order), _BATCH):
            ranks = order[begin : begin + _BATCH]
            records = list(map(next, map(lines.__getitem__, ranks)))
            data = b"".join(records)
            sealed = sealed.extended(data)
            output.write(data)
            written += len(records)
            progress.advance(len(ranks))
        for rest in lines:  # there each file is checked
            deque(rest, maxlen=0)
        if not written == len(order) == manifest.samples:
            raise not_of_this_split(layout.order)
    if manifest.expanded:
        with open(layout.output, "rb") as output, replacing(layout.videos) as videos:
            for video in by_video(map(orjson.loads, output)):
                videos.write(orjson.dumps(video) + b"\n")
    else:
        layout.videos.unlink(missing_ok=True)  # of an earlier run
    contents = [rank_file.contents for rank_file in rank_files]
    summary = _summary(config, layout, manifest, contents, sealed)
    write_text(layout.summary, json.dumps(summary, indent=2) + "\n")
    layout.reopened.unlink(missing_ok=True)
    logger.info("%s: %s", layout.output, summary["samples"])
    if cut_off := describe_cut_off(summary["samples"]["truncated_at"]):
        logger.warning("%s: %s", layout.output, cut_off)
    if unparsed := describe_unparsed(summary["samples"]["errors_by_stage"].get("parse", 0)):
        logger.warning("%s: %s", layout.output, unparsed)


def consolidate_partial(config: Config, layout: Layout) -> None:
    """Write what is finished so far into ``layout.partial``, in input order, while jobs run or
    after they have failed.

    Raises :class:`UserError` if the input was not split yet.
    """
    task = load_task(config)
    manifest = Manifest.of(config, layout)
    records = Records(config, task)
    ranks, order, finished = range(manifest.num_shards), manifest.read_order(layout), 0
    for rank in ranks:
        manifest.check_chunk(layout, rank)
    chunks = [read_lines(layout.chunk(rank), len(ranks)) for rank in ranks]
    with (
        JournalReader(Path(manifest.journal), manifest.read_index()) as reader,
        replacing(layout.partial) as output,
    ):
        for rank in order:
            entry = ChunkEntry.from_line(next(chunks[rank]))
            done = entry.find(reader)
            if len(done) == len(entry.requests):
                journaled = {part: each.record for part, each in done.items()}
                output.write(records.build(entry, journaled).line)
                finished += 1
    logger.info("%s: %d of %d samples", layout.partial, finished, manifest.samples)


def _check_answered(
    config: Config, layout: Layout, manifest: Manifest, contents: list[RankContents]
) -> None:
    """Raise :class:`UserError` if there are samples, and all have failed."""
    stages: Counter[str] = Counter()
    for each in contents:
        stages.update(each.errors_by_stage)
    if not manifest.samples or stages.total() < manifest.samples:
        return
    found = ", ".join(f"{stage}: {count:,}" for stage, count in stages.most_common())
    filled = next(rank for rank, each in enumerate(contents) if each.samples)
    with open(layout.rank_file(filled), "rb") as stream:
        try:
            record = orjson.loads(stream.readline())
            error = record["__error"]
            first = "sample {}: {stage}: {type}: {message}".format(record["__key"], **error)
        except (ValueError, LookupError):
            return  # it is damaged: the checksum will say so
    more = ""
    if stages.keys() - {"parse", "length"}:
        more = (
            ", then open them again (python -m video_pipeline.retry, with the --configfile and "
            "--directory of the run)"
        )
    raise UserError(
        f"none of the {manifest.samples:,} samples in {config.data.input_jsonl.absolute()} was "
        f"answered ({found}), so there is no output. The first: {first}. Fix the cause{more} and "
        "run snakemake again"
    )


_BATCH = 1 << 9


def _summary(
    config: Config, layout: Layout, manifest: Manifest, contents: list[RankContents], seal: Seal
) -> dict[str, Any]:
    stages: Counter[str] = Counter()
    usage: Counter[str] = Counter()
    truncated: Counter[str] = Counter()
    splits: set[str] = set()
    for each in contents:
        stages.update(each.errors_by_stage)
        usage.update(each.usage)
        truncated.update(each.truncated)
        splits.update(each.splits)
    jobs = read_statistics(Path(manifest.journal), splits)
    return {
        "version": versions.SUMMARY,
        "output": str(layout.output),
        "output_file": seal._asdict(),
        "videos": str(layout.videos) if manifest.expanded else None,
        "task": manifest.task,
        "origin": manifest.origin,
        "model": config.model_name,
        "samples": {
            **manifest.counts,
            "ok": manifest.samples - stages.total(),
            "error": stages.total(),
            "errors_by_stage": dict(stages),
            "truncated": truncated.total(),
            "truncated_at": dict(truncated),
        },
        "usage": dict(usage),
        "throughput": throughput(jobs),
        "cost": cost(jobs),
        "journal": manifest.journal,
        "splits": sorted(splits),
        "jobs": [{n: job[n] for n in job if n not in OVER_TIME} for job in jobs],
    }
