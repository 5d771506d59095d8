"""Consolidate: the rank files become one output, in input order, with a summary and a list of the
failed samples; before that, what is finished so far."""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.chunks import ChunkEntry, holds_key, read_lines
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.files import replacing, write_text
from video_pipeline.journal import JournalReader
from video_pipeline.layout import Layout
from video_pipeline.records import Records
from video_pipeline.sharding import Manifest
from video_pipeline.statistics import OVER_TIME, cost, read_statistics, throughput
from video_pipeline.tasks.registry import load_task
from video_pipeline.windows import by_video

logger = logging.getLogger(__name__)


def consolidate(config: Config, layout: Layout) -> None:
    """Merge the rank files into ``data.output_jsonl``; write the summary, and the failed samples as
    an input that can be run again.

    Each record is checked against the chunk that split wrote.

    Raises :class:`UserError` naming the rank, the line and the sample where a record is missing
    or is another sample's.
    """
    manifest = Manifest.read(layout.manifest)
    stages: Counter[str] = Counter()
    prompt_tokens = completion_tokens = 0
    ranks = range(manifest.num_shards)
    chunks = [read_lines(layout.chunk(rank), 2 * len(ranks)) for rank in ranks]
    rank_files = [read_lines(layout.rank_file(rank), 2 * len(ranks)) for rank in ranks]
    positions = [0] * len(ranks)
    with replacing(layout.errors) as failed, replacing(layout.output) as output:
        for rank in array("I", layout.order.read_bytes()):
            entry = next(chunks[rank])
            line = next(rank_files[rank], b"")
            positions[rank] += 1
            record = _parse(line)
            key = record.get("__key")
            if not (isinstance(key, str) and holds_key(entry, key)):
                found = repr(record.get("__key", line[:40])) if line else "the end of the file"
                raise UserError(
                    f"{layout.rank_file(rank)}, line {positions[rank]}: expected sample "
                    f"{ChunkEntry.from_line(entry).key!r}, found {found}. Remove this rank file "
                    "and run snakemake again; nothing is inferred twice"
                )
            output.write(line)
            usage = record.get("__usage") or {}
            prompt_tokens += usage.get("prompt_tokens") or 0
            completion_tokens += usage.get("completion_tokens") or 0
            if error := record.get("__error"):
                stages[error["stage"]] += 1
                failed.write(orjson.dumps(ChunkEntry.from_line(entry).raw) + b"\n")
        for rank, records in enumerate(rank_files):
            if next(records, None) is not None:
                raise UserError(
                    f"{layout.rank_file(rank)} holds more records than its chunk. Remove it and "
                    "run snakemake again; nothing is inferred twice"
                )
    if manifest.expanded:
        with open(layout.output, "rb") as output, replacing(layout.videos) as videos:
            for video in by_video(map(orjson.loads, output)):
                videos.write(orjson.dumps(video) + b"\n")
    tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    summary = _summary(config, layout, manifest, stages, tokens)
    write_text(layout.summary, json.dumps(summary, indent=2) + "\n")
    logger.info("%s: %s", layout.output, summary["samples"])


def consolidate_partial(config: Config, layout: Layout) -> None:
    """Write what is finished so far into ``layout.partial``, in input order, while jobs run or
    after they have failed.

    Raises :class:`UserError` if the input was not split yet.
    """
    task = load_task(config)
    manifest = Manifest.read(layout.manifest)
    records = Records(config, task)
    finished = 0
    with JournalReader(Path(manifest.journal)) as reader, replacing(layout.partial) as output:
        index = manifest.read_index()
        ranks = range(manifest.num_shards)
        chunks = [read_lines(layout.chunk(rank), len(ranks)) for rank in ranks]
        for rank in array("I", layout.order.read_bytes()):
            entry = ChunkEntry.from_line(next(chunks[rank]))
            done = entry.find(index)
            if len(done) == len(entry.requests):
                journaled = {part: reader.read(place) for part, place in done.items()}
                output.write(orjson.dumps(records.build(entry, journaled)) + b"\n")
                finished += 1
    logger.info("%s: %d of %d samples", layout.partial, finished, manifest.samples)


def _parse(line: bytes) -> dict[str, Any]:
    """The record of a line, empty if it holds none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}


def _summary(
    config: Config,
    layout: Layout,
    manifest: Manifest,
    stages: Counter[str],
    tokens: dict[str, int],
) -> dict[str, Any]:
    jobs = [
        job
        for rank in range(manifest.num_shards)
        for job in read_statistics(layout.statistics(rank))
    ]
    return {
        "output": str(layout.output),
        "task": manifest.task,
        "model": config.vllm.model if config.run.engine == "vllm" else config.run.engine,
        "samples": {
            "input_lines": manifest.lines,
            "distinct": manifest.samples,
            "duplicates": manifest.duplicates,
            "left_out": manifest.left_out,
            "ok": manifest.samples - stages.total(),
            "error": stages.total(),
            "errors_by_stage": dict(stages),
        },
        "usage": tokens,
        "throughput": throughput(jobs),
        "cost": cost(jobs),
        "jobs": [{n: job[n] for n in job if n not in OVER_TIME} for job in jobs],
    }
