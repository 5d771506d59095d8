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

from video_pipeline.chunks import ChunkEntry, input_of, read_lines
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.files import replacing, write_text
from video_pipeline.journal import JournalReader
from video_pipeline.layout import Layout
from video_pipeline.progress import Progress
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
    order = array("I", layout.order.read_bytes())
    with (
        Progress(layout.progress("consolidate"), "consolidate", "samples", len(order)) as progress,
        replacing(layout.errors) as failed,
        replacing(layout.output) as output,
    ):
        for rank in progress.each(order):
            entry = next(chunks[rank])
            line = next(rank_files[rank], b"")
            positions[rank] += 1
            usage = _usage_of_ok(line, entry)
            if usage is None:
                expected, record = ChunkEntry.from_line(entry), _parse(line)
                if record.get("__key") != expected.key:
                    found = repr(record.get("__key", line[:40])) if line else "the end of the file"
                    raise UserError(
                        f"{layout.rank_file(rank)}, line {positions[rank]}: expected sample "
                        f"{expected.key!r}, found {found}. Remove this rank file "
                        "and run snakemake again; nothing is inferred twice"
                    )
                usage = record.get("__usage") or {}
                if error := record.get("__error"):
                    stages[error["stage"]] += 1
                    failed.write(expected.text + b"\n")
            output.write(line)
            prompt_tokens += usage.get("prompt_tokens") or 0
            completion_tokens += usage.get("completion_tokens") or 0
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
                output.write(records.build(entry, journaled)[0])
                finished += 1
    logger.info("%s: %d of %d samples", layout.partial, finished, manifest.samples)


def _usage_of_ok(line: bytes, entry: bytes) -> dict[str, Any] | None:
    """``__usage`` of the record of an answer, if its line is whole and begins as ``infer`` writes
    it for this entry of the chunk, input object included; else None. No more of it is parsed: that
    would take most of the time."""
    after_key = line.find(_OK)
    if after_key < 0 or not (line.startswith(_KEY) and line.endswith(b"}\n")):
        return None
    raw = input_of(entry, line[len(_KEY) : after_key])
    begin = line.find(_USAGE, after_key)
    end = line.find(_INPUT, begin)
    if raw is None or begin < 0 or not line.startswith(raw, end + len(_INPUT)):
        return None
    if line.find(_KEY, end + len(_INPUT) + len(raw)) >= 0:  # another record begins on the line
        return None
    return _parse(line[begin + len(_USAGE) : end]) or None


# no text can hold these bytes: its quotes are escaped
_KEY, _OK = b'{"__key":', b',"__status":"ok",'
_USAGE, _INPUT = b',"__usage":', b',"input":'


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
            **manifest.counts,
            "ok": manifest.samples - stages.total(),
            "error": stages.total(),
            "errors_by_stage": dict(stages),
        },
        "usage": tokens,
        "throughput": throughput(jobs),
        "cost": cost(jobs),
        "jobs": [{n: job[n] for n in job if n not in OVER_TIME} for job in jobs],
    }
