"""Split: check the input, find what is done, and give each rank its chunk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from array import array
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.budget import check_budget_of_model
from video_pipeline.chunks import ChunkEntry
from video_pipeline.config import Config
from video_pipeline.errors import TaskError, UserError
from video_pipeline.files import write_text
from video_pipeline.identity import fingerprint, request_digest, settings_digest
from video_pipeline.journal import ATTEMPTS, JournalIndex, attempt_prefix, read_index
from video_pipeline.layout import Layout
from video_pipeline.locks import describe_holder, is_locked
from video_pipeline.plugins import load_plugins
from video_pipeline.samples import InputReader, task_sample
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import get_task

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""The jobs of a Snakemake that was killed end within this time."""

TWICE = 100
"""How many samples have their messages built twice, to see that they come out the same."""


@dataclass
class Manifest:
    """What split did; the word of honour between split, infer and consolidate.

    Attributes:
        split_id: Names this split; part of the names of the journal files.
        num_shards: Chunks, one for each rank.
        task: Name of the task.
        journal: Folder of the journal, relative to the working directory.
        settings: Digest of the settings that the journal stands for.
        lines: Lines of the input that are not blank.
        samples: Distinct samples.
        duplicates: Lines that repeat an earlier sample.
        left_out: Error records of an earlier run's output, which are no samples.
        pending: Samples that were still to be inferred.
        rank_samples: Samples of each rank.
        rank_pending: Pending samples of each rank.
        journal_files: Files of the journal that split has read.
        revived: How often these chunks came back after another number of shards.
    """

    split_id: str
    num_shards: int
    task: str
    journal: str
    settings: str
    lines: int = 0
    samples: int = 0
    duplicates: int = 0
    left_out: int = 0
    pending: int = 0
    rank_samples: list[int] = field(default_factory=list)
    rank_pending: list[int] = field(default_factory=list)
    journal_files: list[str] = field(default_factory=list)
    revived: int = 0

    def read_index(self, rank: int) -> JournalIndex:
        """What the journal says about the chunk of ``rank`` beyond what split has read: its own
        attempts, and those of another split that came later (another number of shards, in
        between)."""
        known, ours = frozenset(self.journal_files), f"{ATTEMPTS}{self.split_id}."
        return read_index(
            Path(self.journal),
            attempt_prefix(self.split_id, rank),
            lambda name: name not in known and not name.startswith(ours),
        )

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``manifest.json``. Raises :class:`UserError` if the input was not split yet."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: the input was not split into these chunks"
            ) from None


def split(config: Config, layout: Layout, run_id: str = "") -> Manifest:
    """Split the input into ``layout.num_shards`` chunks and write the manifest.

    Pending samples are dealt out evenly, finished ones too; each chunk stays in input order. On
    bad input nothing is written.

    Raises :class:`UserError` for bad lines, for a configuration that cannot work, and while
    another process writes to the same output.
    """
    load_plugins(config.run.plugins)
    task = get_task(config.run.task)(dict(config.task_params))
    check_budget_of_model(config)
    refuse_live_writers(layout)
    journal = journal_folder(config, layout, task, run_id)
    index = read_index(journal)

    manifest = Manifest(
        split_id=uuid.uuid4().hex[:12],
        num_shards=layout.num_shards,
        task=task.name,
        journal=str(journal),
        settings=settings_digest(config),
    )
    manifest.rank_samples = [0] * layout.num_shards
    manifest.rank_pending = [0] * layout.num_shards
    manifest.journal_files = index.files
    order = array("I")
    seen: dict[str, tuple[str, int]] = {}
    reader = InputReader(config)
    scratch = layout.chunks.with_name(f".{layout.chunks.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # of a split that was killed
    scratch.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            chunks = [
                stack.enter_context(open(scratch / layout.chunk(rank).name, "wb", 1 << 16))
                for rank in range(layout.num_shards)
            ]
            for sample in reader:
                known, line = seen.setdefault(sample.key, (sample.content, sample.line))
                if manifest.samples < len(seen):
                    manifest.samples += 1
                else:
                    manifest.duplicates += 1
                    if known != sample.content:
                        reader.reject(
                            sample.line,
                            f"id {sample.key!r:.80} stands on line {line} with other content",
                        )
                    continue
                if reader.num_errors:
                    continue
                # written down before the task sees it, which may change it
                raw = orjson.Fragment(orjson.dumps(sample.raw))
                asked = task_sample(sample.key, sample.raw, config)
                video = sample.raw[config.data.video_field]
                try:
                    request = request_digest(task, asked, video)
                    if manifest.samples <= TWICE:
                        check_deterministic(task, asked, video, request)
                except TaskError as error:
                    raise TaskError(
                        f"{config.data.input_jsonl}, line {sample.line}: {error}"
                    ) from error
                done = index.find(sample.key, "", request)
                if done is None:
                    rank = manifest.pending % layout.num_shards
                    manifest.pending += 1
                    manifest.rank_pending[rank] += 1
                else:
                    rank = (manifest.samples - manifest.pending) % layout.num_shards
                manifest.rank_samples[rank] += 1
                order.append(rank)
                chunks[rank].write(ChunkEntry(sample.key, request, raw, done).to_line())
        reader.raise_errors()
        manifest.lines, manifest.left_out = reader.lines, reader.left_out
        (scratch / layout.order.name).write_bytes(order.tobytes())
        layout.chunks.mkdir(parents=True, exist_ok=True)
        for entry in sorted(scratch.iterdir()):
            os.replace(entry, layout.chunks / entry.name)
        write_text(layout.manifest, json.dumps(asdict(manifest), indent=2) + "\n")
    finally:
        shutil.rmtree(scratch)
    logger.info(
        "%d samples (%d lines, %d duplicates, %d failed earlier and left out), %d pending, "
        "in %d chunk(s)",
        manifest.samples,
        manifest.lines,
        manifest.duplicates,
        manifest.left_out,
        manifest.pending,
        manifest.num_shards,
    )
    return manifest


def journal_folder(config: Config, layout: Layout, task: Task, run_id: str) -> Path:
    """The folder of the journal that this configuration writes to."""
    from video_pipeline.data.registry import get_dataset  # imports torch
    from video_pipeline.video import READER_VERSION

    dataset = get_dataset(task.dataset_name)
    name = fingerprint(config, task.dataset_name, dataset.version, READER_VERSION)
    return layout.journal / (f"{name}-{run_id}" if run_id else name)


def check_deterministic(task: Task, sample: dict[str, Any], video: str, request: str) -> None:
    """Raise :class:`TaskError` if building the messages of ``sample`` again gives others."""
    if request_digest(task, sample, video) != request:
        raise TaskError(
            f"task {task.name!r}: build_messages gave two different conversations for sample "
            f"{sample['__key']!r}; resume needs the same one each time. If it draws at random, "
            "seed it from the key: random.Random(sample['__key'])"
        )


def refuse_live_writers(layout: Layout, *, of_other_plans: bool = False) -> None:
    """Raise :class:`UserError` if a process infers into this output and does not end soon, with
    ``of_other_plans`` only if it does so for another number of shards."""
    deadline = time.monotonic() + GRACE_SECONDS
    for lock in layout.all_locks:
        if of_other_plans and lock.parent == layout.chunks:
            continue
        while is_locked(lock):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{layout.output} is still being written by {describe_holder(lock)} "
                    f"({lock.parent.name}, {lock.stem}): wait for it or stop it, then run again"
                )
            time.sleep(0.1)
