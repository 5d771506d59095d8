"""Estimates what a run will take, without a GPU and without the weights of the model.

The samples go through the decode processes of a run (:mod:`video_pipeline.decode.pool`), with the
run's own dataset. But videos are only measured (:func:`video_pipeline.video.reader.measuring`), and
the model's processor counts the tokens. A file that crashes or hangs its reader costs only itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import random
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from video_pipeline.common.figures import Histogram, even_edges, figures, growing_edges
from video_pipeline.common.files import replacing, write_text
from video_pipeline.common.locks import describe_holder, try_lock
from video_pipeline.common.processes import job_processes
from video_pipeline.common.progress import Progress
from video_pipeline.config import Config
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import READER, WorkerSpec
from video_pipeline.errors import UserError
from video_pipeline.estimate.counting import CountingPreparer
from video_pipeline.estimate.expected import expected_costs
from video_pipeline.estimate.totals import CostTotals, SampleCost
from video_pipeline.journal.format import clean_text
from video_pipeline.journal.index import read_index
from video_pipeline.model.processor import dataset_model
from video_pipeline.report.plan import FLAGS, show_plan
from video_pipeline.run.changes import JournalSettings, warn_of_changes
from video_pipeline.run.chunks import Chunk, ChunkEntry
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.run import DatasetNeeds, Run
from video_pipeline.split.split import split

logger = logging.getLogger(__name__)

SEED = 0
"""The seed of the random sample, so that each plan looks at the same samples."""

AHEAD = 64
"""Samples under way for each process, at most. So a sample that hangs does not keep the other
processes idle, and the lines of the plan stay in the order of the input."""


def plan_stages(configs: Sequence[Config], threads: int) -> None:
    """Make the plan of each stage whose input exists. Arguments are those of :func:`make_plan`."""
    for position, config in enumerate(configs):
        source = config.data.input_jsonl
        outputs = [str(earlier.data.output_jsonl) for earlier in configs[:position]]
        if source in outputs and not os.path.exists(source):
            logger.warning(
                "%s: left out, a stage before it has to write its input first: %s",
                config.data.output_jsonl,
                source,
            )
        else:
            make_plan(config, Layout.of(config), threads)


def make_plan(config: Config, layout: Layout, threads: int) -> None:
    """Look at the samples of ``config`` in ``threads`` processes; write ``layout.plan_report`` and
    ``layout.plan_samples``, and print the report.

    Raises :class:`UserError` if split would raise it (bad lines, a longest prompt that does not
    fit), for mistakes in the user's code, and if the model's processor is not available.
    """
    lock = try_lock(layout.plan_lock)
    if lock is None:
        raise UserError(
            f"the plan of {layout.output} is being made by {describe_holder(layout.plan_lock)}"
        )
    with lock:
        shutil.rmtree(layout.plan_scratch, ignore_errors=True)  # A killed plan may have left it.
        try:
            report = _plan(_own_config(config, layout), config, layout, threads)
        finally:
            shutil.rmtree(layout.plan_scratch, ignore_errors=True)
    write_text(layout.plan_report, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    show_plan(report)


def _own_config(config: Config, layout: Layout) -> Config:
    """``config`` with an output in the scratch folder, and with the processor for its model."""
    data = config.data.model_copy(
        update={"output_jsonl": layout.plan_scratch / "plan.jsonl", "balance": "count"}
    )
    if config.run.engine == "simulated":
        return config.model_copy(update={"data": data})
    vllm = config.vllm.model_copy(update={"model": dataset_model(config)})
    return config.model_copy(update={"data": data, "vllm": vllm})


def _plan(own: Config, config: Config, layout: Layout, threads: int) -> dict[str, Any]:
    """The report about ``config``; ``own`` is the configuration that does the work."""
    ours = Layout.of(own, 1)
    # Split would log messages about chunks and their balance, which mean nothing here.
    logging.getLogger(split.__module__).setLevel(logging.WARNING)
    manifest = split(own, ours, num_processes=threads)
    chunk = manifest.open_chunk(ours, 0)
    positions: Sequence[int] = range(len(chunk))
    if config.plan.samples is not None and config.plan.samples < len(chunk):
        positions = sorted(random.Random(SEED).sample(positions, config.plan.samples))
    with job_processes() as folder, replacing(layout.plan_samples) as lines:
        totals = CostTotals(config, lines)
        if positions:
            asyncio.run(_look(own, chunk, positions, folder, threads, totals))
    run = Run(config, layout)
    _warn_of_changes(run, manifest, chunk)
    return _report(run, manifest, totals)


def _warn_of_changes(run: Run, manifest: Manifest, chunk: Chunk) -> None:
    """Log what a run would infer again because the settings have changed."""
    if not run.config.data.resume:
        return
    now = run.journal_settings()
    index = read_index(now.folder)
    pending = sum(
        any(index.find(*question) is None for question in entry.questions) for entry in chunk
    )
    warn_of_changes(now, JournalSettings.last(run.layout), pending, manifest.samples)


async def _look(
    own: Config,
    chunk: Chunk,
    positions: Sequence[int],
    folder: Path,
    threads: int,
    totals: CostTotals,
) -> None:
    """Count the samples at ``positions``, many at once, and note the results in order. Another
    process asks the engine for its limit."""
    model = dataset_model(own)
    with_engine = own.vllm.prunes_videos or DatasetNeeds.of(own).own_rules
    preparer = CountingPreparer(own, model, with_engine=with_engine)
    spec = WorkerSpec(own, chunk.path, chunk.seal, model, preparer, folder)
    pool = DecodePool(
        ForkServer(READER), spec, min(threads, len(positions)), own.data.sample_timeout_s
    )
    progress_file = Layout.of(own).progress("plan")
    waiting: deque[asyncio.Task[SampleCost]] = deque()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as engine:
        try:
            if own.run.engine != "simulated":
                await totals.ask(engine.submit(_max_item_tokens, own))
            with Progress(progress_file, "plan", "samples", len(positions)) as progress:
                for position in positions:
                    waiting.append(asyncio.create_task(_look_at(pool, position, chunk[position])))
                    if len(waiting) == threads * AHEAD:
                        totals.note(await waiting.popleft())
                        progress.advance()
                while waiting:
                    totals.note(await waiting.popleft())
                    progress.advance()
        finally:
            pool.stop()  # Its threads end with their processes.
            for task in waiting:
                task.cancel()


def _max_item_tokens(config: Config) -> int | None:
    """Visual tokens of the largest item that the engine takes. Runs in a process of its own,
    because vLLM takes 2 GB."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from video_pipeline.engine import create_engine

    return create_engine(config, with_videos=False).max_item_tokens


async def _look_at(pool: DecodePool, position: int, entry: ChunkEntry) -> SampleCost:
    """The cost of a sample. If it kills its process, it is tried again, once, as in a run."""
    try:
        try:
            prepared = await pool.prepare(position, entry.requests)
        except SampleError as error:
            if error.stage != "crash":
                raise
            prepared = await pool.prepare(position, entry.requests)
    except SampleError as error:
        record = error.as_record()
        return SampleCost(entry, error={**record, "message": clean_text(record["message"])})
    return SampleCost(entry, prepared.video_seconds, prepared.requests)


def _report(run: Run, manifest: Manifest, totals: CostTotals) -> dict[str, Any]:
    config = run.config
    scale = manifest.samples / totals.looked_at if totals.looked_at else 1.0
    limits = {
        "max_model_len": config.vllm.max_model_len,
        "longest_answer": config.most_tokens,
        "max_item_tokens": totals.max_item_tokens,
        "max_item_tokens_unknown": totals.why_unknown or None,
    }
    return {
        "output": str(run.layout.output),
        "task": manifest.task,
        "model": config.model_name,
        "samples": {
            **manifest.counts,
            "looked_at": totals.looked_at,
            "readable": totals.looked_at - totals.unreadable,
            "unreadable": totals.unreadable,
        },
        "scale": scale,
        "errors": [
            {
                **dict(zip(("stage", "type", "message"), kind, strict=True)),
                "count": count,
                "example": totals.examples[kind],
            }
            for kind, count in totals.errors.most_common()
        ],
        "videos": {
            "seconds": figures(totals.seconds),
            "bytes": totals.num_bytes,
            "sizes": dict(totals.sizes.most_common()),
            "codecs": dict(totals.codecs.most_common()),
        },
        "tokens": {
            "prompts": len(totals.prompt_tokens),
            "prompt": figures(totals.prompt_tokens),
            "visual": figures(totals.visual_tokens),
            "sound": figures(totals.sound_tokens),
        },
        "limits": limits,
        "flagged": {flag: totals.flagged[flag] for flag in FLAGS},
        "expected": expected_costs(run, totals, scale),
        "histograms": {
            "prompt_tokens": Histogram.of(totals.prompt_tokens, even_edges).as_rows(),
            "seconds": Histogram.of(totals.seconds, growing_edges).as_rows(),
        },
    }
