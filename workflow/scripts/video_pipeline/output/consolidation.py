"""Joins the rank files to one output, in input order, with a summary and a list of the failed
samples. Before that, it can write the partial output: the samples that are finished so far."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.common import versions
from video_pipeline.common.files import EMPTY, Seal, replacing, write_text
from video_pipeline.common.own_command import command_line
from video_pipeline.common.progress import Progress
from video_pipeline.config import Config
from video_pipeline.config.source import shown
from video_pipeline.errors import UserError
from video_pipeline.journal.reader import JournalReader
from video_pipeline.output.rank_files import RankContents, RankFile
from video_pipeline.output.records import RecordBuilder
from video_pipeline.run.answers import describe_cut_off, describe_damaged, describe_unparsed
from video_pipeline.run.chunks import ChunkEntry, not_of_this_split, read_lines
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.reopening import stages_to_retry
from video_pipeline.run.statistics import OVER_TIME, read_statistics
from video_pipeline.run.throughput import cost, throughput
from video_pipeline.samples.windows import by_video
from video_pipeline.tasks.registry import load_task

logger = logging.getLogger(__name__)

_BATCH = 1 << 9
_AHEAD, _MOST_AHEAD = 1 << 5, 1 << 14
"""Records of one rank, and of all, that the partial output holds in memory."""


def consolidate(config: Config, layout: Layout) -> None:
    """Merge the rank files into ``data.output_jsonl``; write the summary, and the records of the
    failed samples, which can be the input of another run.

    Raises :class:`UserError` if a file is not what ``split`` or ``infer`` wrote; it names the file,
    and if possible the line and the sample.
    """
    manifest = Manifest.of(config, layout)
    rank_files = [RankFile(layout, manifest, rank) for rank in range(manifest.num_shards)]
    ranks = [rank_file.contents for rank_file in rank_files]
    _check_answered(config, layout, manifest, ranks)
    seal = _merge(rank_files, manifest, layout)
    _write_videos(config, manifest, layout)
    summary = _summary(config, layout, manifest, ranks, seal)
    write_text(layout.summary, json.dumps(summary, indent=2) + "\n")
    layout.reopened.unlink(missing_ok=True)
    counts = summary["samples"]
    ok, error, distinct = (f"{counts[name]:,}" for name in ("ok", "error", "distinct"))
    logger.info("%s: %s answered, %s failed, of %s samples", layout.output, ok, error, distinct)
    for warning in (
        describe_cut_off(counts["truncated_at"]),
        describe_damaged(counts["damaged"]),
        describe_unparsed(counts["errors_by_stage"].get("parse", 0)),
    ):
        if warning:
            logger.warning("%s: %s", layout.output, warning)


def _merge(rank_files: list[RankFile], manifest: Manifest, layout: Layout) -> Seal:
    """Write the records in input order, and those of the failed samples. Returns the output's seal.
    Nothing is written if a file is wrong."""
    order, written, seal = manifest.read_order(layout), 0, EMPTY
    with (
        Progress(layout.progress("consolidate"), "consolidate", "samples", len(order)) as progress,
        replacing(layout.errors) as failed,
        replacing(layout.output) as output,
    ):
        lines = [rank_file.lines(failed) for rank_file in rank_files]
        lines.append(manifest.read_left_out(layout))
        for begin in range(0, len(order), _BATCH):
            ranks = order[begin : begin + _BATCH]
            # The list ends early if a rank file does. Then too few records are written.
            records = list(map(next, map(lines.__getitem__, ranks)))
            data = b"".join(records)
            seal = seal.extended(data)
            output.write(data)
            written += len(records)
            progress.advance(len(ranks))
        for remaining in lines:
            deque(remaining, maxlen=0)  # Each rank file is checked at its end.
        if not written == len(order) == manifest.samples + manifest.left_out_records:
            raise not_of_this_split(layout.order)
    return seal


def _write_videos(config: Config, manifest: Manifest, layout: Layout) -> None:
    """Write one object for each video if samples are windows of videos."""
    if not manifest.expanded:
        layout.videos.unlink(missing_ok=True)  # An earlier run may have written it.
        return
    with open(layout.output, "rb") as output, replacing(layout.videos) as videos:
        for video in by_video(map(orjson.loads, output), config.data.video_field):
            videos.write(orjson.dumps(video) + b"\n")


def consolidate_partial(config: Config, layout: Layout) -> None:
    """Write the records that are finished so far into ``layout.partial``, in input order, while
    jobs run or after they have failed.

    Raises :class:`UserError` if the input was not split yet.
    """
    manifest = Manifest.of(config, layout)
    builder = RecordBuilder(config, load_task(config))
    ranks, order, num_finished = range(manifest.num_shards), manifest.read_order(layout), 0
    for rank in ranks:
        manifest.check_chunk(layout, rank)
    chunks = [read_lines(layout.chunk(rank), len(ranks)) for rank in ranks]
    with (
        JournalReader(Path(manifest.journal), manifest.read_index()) as reader,
        replacing(layout.partial) as output,
    ):
        ahead = max(1, min(_AHEAD, _MOST_AHEAD // len(chunks)))
        lines = [_finished(chunk, reader, builder, ahead) for chunk in chunks]
        lines.append(manifest.read_left_out(layout))
        for rank in order:
            line = next(lines[rank])
            output.write(line)
            num_finished += bool(line) and rank < manifest.num_shards
    logger.info("%s: %d of %d samples", layout.partial, num_finished, manifest.samples)


def _finished(
    chunk: Iterator[bytes], reader: JournalReader, builder: RecordBuilder, ahead: int
) -> Iterator[bytes]:
    """The record of each sample of a chunk, empty if it is not finished. ``ahead`` of them are read
    at once: the journal may have more files than can be open, and one is opened for them all."""
    while lines := list(islice(chunk, ahead)):
        records = []
        for entry in map(ChunkEntry.from_line, lines):
            done = entry.find(reader)
            is_whole = len(done) == len(entry.requests)
            journaled = {part: finished.record for part, finished in done.items()}
            records.append(builder.build(entry, journaled).line if is_whole else b"")
        yield from records


def _check_answered(
    config: Config, layout: Layout, manifest: Manifest, ranks: list[RankContents]
) -> None:
    """Raise :class:`UserError` if there are samples, and all have failed."""
    stages = _total(rank.errors_by_stage for rank in ranks)
    if not manifest.samples or stages.total() < manifest.samples:
        return
    counts = ", ".join(f"{stage}: {count:,}" for stage, count in stages.most_common())
    first_rank = next(rank.rank for rank in ranks if rank.samples)
    with open(layout.rank_file(first_rank), "rb") as stream:
        try:
            record = orjson.loads(stream.readline())
            error = record["__error"]
            first = "sample {}: {stage}: {type}: {message}".format(record["__key"], **error)
            if text := record.get("output_text"):
                first += f". The model's text: {text!r:.200}"
        except (ValueError, LookupError):
            return  # The file is damaged, which its checksum will show.
    retry = ""
    can_open = stages - Counter(length=sum(rank.stay_cut_off for rank in ranks))
    closed = sorted(can_open.keys() & set(stages_to_retry(config)))
    if closed and not stages["parse"]:
        command = command_line("retry", layout.config, Path(__file__).parents[2])
        which = "them" if len(closed) == len(stages) else f"those of stage {', '.join(closed)}"
        retry = f", then open {which} again ({command})"
    raise UserError(
        f"none of the {manifest.samples:,} samples in {shown(config.data.input_jsonl)} was "
        f"answered ({counts}), so there is no new output. The first: {first}. Snakemake's rule "
        f"`partial` writes all of them to {layout.partial}. Fix the cause{retry} and run snakemake "
        "again"
    )


def _summary(
    config: Config, layout: Layout, manifest: Manifest, ranks: list[RankContents], seal: Seal
) -> dict[str, Any]:
    stages = _total(rank.errors_by_stage for rank in ranks)
    truncated = _total(rank.truncated for rank in ranks)
    splits = set(_total(rank.splits for rank in ranks))
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
            "damaged": sum(rank.damaged for rank in ranks),
            "stay_cut_off": sum(rank.stay_cut_off for rank in ranks),
        },
        "usage": dict(_total(rank.usage for rank in ranks)),
        "throughput": throughput(jobs),
        "cost": cost(jobs),
        "journal": manifest.journal,
        "splits": sorted(splits),
        "jobs": [{n: job[n] for n in job if n not in OVER_TIME} for job in jobs],
    }


def _total(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total
