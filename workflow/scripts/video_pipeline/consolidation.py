"""Consolidate: the rank files become one output, in input order, with a summary and a list of the
failed samples; before that, what is finished so far."""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.chunks import Chunk, ChunkEntry
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.files import replacing, write_text
from video_pipeline.journal import JournalReader
from video_pipeline.layout import Layout
from video_pipeline.records import Records
from video_pipeline.sharding import Manifest
from video_pipeline.statistics import read_statistics, throughput
from video_pipeline.tasks.registry import load_task

logger = logging.getLogger(__name__)


def consolidate(config: Config, layout: Layout) -> None:
    """Merge the rank files into ``data.output_jsonl``; write the summary, and the failed samples as
    an input that can be run again.

    Each record is checked against the chunk that split wrote.

    Raises :class:`UserError` naming the rank, the line and the sample where a record is missing
    or is another sample's.
    """
    manifest = Manifest.read(layout.manifest)
    order = array("I", layout.order.read_bytes())
    statuses: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    with ExitStack() as stack:
        failed = stack.enter_context(replacing(layout.errors))
        output = stack.enter_context(replacing(layout.output))
        pairs = [
            (
                stack.enter_context(open(layout.chunk(rank), "rb")),
                stack.enter_context(open(layout.rank_file(rank), "rb")),
            )
            for rank in range(manifest.num_shards)
        ]
        positions = [0] * manifest.num_shards
        for rank in order:
            chunk, records = pairs[rank]
            positions[rank] += 1
            entry = ChunkEntry.from_line(chunk.readline())
            line = records.readline()
            record = _parse(line)
            if record.get("__key") != entry.key:
                found = repr(record.get("__key", line[:40])) if line else "the end of the file"
                raise UserError(
                    f"{layout.rank_file(rank)}, line {positions[rank]}: expected sample "
                    f"{entry.key!r}, found {found}. Remove this rank file and run snakemake again; "
                    "nothing is inferred twice"
                )
            error = record.get("__error")
            statuses[f"error: {error['stage']}" if error else "ok"] += 1
            tokens.update(
                {n: v for n, v in record.get("__usage", {}).items() if isinstance(v, int)}
            )
            output.write(line)
            if error:
                failed.write(orjson.dumps(entry.raw) + b"\n")
        for rank, (_, records) in enumerate(pairs):
            if records.readline():
                raise UserError(
                    f"{layout.rank_file(rank)} holds more records than its chunk. Remove it and "
                    "run snakemake again; nothing is inferred twice"
                )
    summary = _summary(config, layout, manifest, statuses, tokens)
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
        chunks = [iter(Chunk(layout.chunk(rank))) for rank in range(manifest.num_shards)]
        indexes = [manifest.read_index(rank) for rank in range(manifest.num_shards)]
        for rank in array("I", layout.order.read_bytes()):
            entry = next(chunks[rank])
            done = indexes[rank].find(entry.key, "", entry.request, entry.done)
            if done is not None:
                output.write(orjson.dumps(records.build(entry, reader.read(done))) + b"\n")
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
    statuses: Counter[str],
    tokens: Counter[str],
) -> dict[str, Any]:
    jobs = [
        job
        for rank in range(manifest.num_shards)
        for job in read_statistics(layout.statistics(rank))
    ]
    failures = {s.removeprefix("error: "): n for s, n in statuses.items() if s != "ok"}
    return {
        "output": str(layout.output),
        "task": manifest.task,
        "model": config.vllm.model if config.run.engine == "vllm" else config.run.engine,
        "samples": {
            "input_lines": manifest.lines,
            "distinct": manifest.samples,
            "duplicates": manifest.duplicates,
            "left_out": manifest.left_out,
            "ok": statuses["ok"],
            "error": sum(failures.values()),
            "errors_by_stage": failures,
        },
        "usage": {
            "prompt_tokens": tokens["prompt_tokens"],
            "completion_tokens": tokens["completion_tokens"],
        },
        "throughput": throughput(jobs),
        "jobs": jobs,
    }
