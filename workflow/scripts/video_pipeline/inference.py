"""Infer: one chunk on one GPU, from pending samples to the rank file.

What is pending is streamed through the engine into the journal (:mod:`video_pipeline.streaming`).
When the chunk is complete, its rank file is written from the journal, in input order.
"""

from __future__ import annotations

import logging
import os
from array import array
from contextlib import suppress
from pathlib import Path

from video_pipeline import gpus
from video_pipeline.answers import describe_unparsed, why_no_answer
from video_pipeline.chunks import Question
from video_pipeline.config import Config
from video_pipeline.error_rate import ErrorRate
from video_pipeline.errors import SPLIT_AGAIN, EnvironmentFault, TaskError, UserError
from video_pipeline.files import write_text
from video_pipeline.hub import with_commit
from video_pipeline.identity import settings_digest, settings_of
from video_pipeline.journal import (
    Finished,
    JournalIndex,
    JournalReader,
    JournalWriter,
    attempt_prefix,
)
from video_pipeline.layout import Layout
from video_pipeline.locks import waiting_lock
from video_pipeline.origin import check_code
from video_pipeline.processes import job_processes
from video_pipeline.rank_files import writing
from video_pipeline.records import RecordBuilder
from video_pipeline.retry import reopen_errors
from video_pipeline.samples import task_sample
from video_pipeline.scanning import TWICE, check_deterministic
from video_pipeline.sharding import Manifest, refuse_live_writers
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task

logger = logging.getLogger(__name__)

STORAGE_STAGES = frozenset({"read", "timeout"})
"""Stages of errors that end when the storage is back."""


def infer(
    config: Config,
    layout: Layout,
    rank: int,
    threads: int,
    attempt: int = 1,
    *,
    only_publish: bool = False,
) -> None:
    """Infer what is pending in the chunk of ``rank`` and write its rank file.

    ``threads`` is the number of cores given to the job, ``attempt`` counts Snakemake's retries: a
    failure that another attempt would only repeat is reported again at once. With ``only_publish``
    the job has no GPU, and what is pending is left to another attempt.

    Raises :class:`UserError` where the user's input, code or settings are at fault, also if more
    than ``run.max_error_rate`` of the samples failed; :class:`EnvironmentFault` (such as
    :class:`EngineDead` and :class:`Unfinished`), after which another attempt is worth it.
    """
    failure = layout.failure(rank)
    if attempt > 1 and failure.exists():
        raise UserError(failure.read_text(encoding="utf-8"))
    failure.unlink(missing_ok=True)
    try:
        _infer(config, layout, rank, threads, only_publish)
    except UserError as error:
        write_text(failure, str(error))
        raise


def _infer(config: Config, layout: Layout, rank: int, threads: int, only_publish: bool) -> None:
    """A second job of the same rank waits for the first and infers what that left. With nothing
    pending no GPU is taken and no model loaded."""
    task = load_task(config)
    with waiting_lock(layout.lock(rank), logger):
        refuse_live_writers(layout, of_other_plans=True)
        layout.remove_leftovers(rank)
        manifest = Manifest.of(config, layout)
        settings = settings_of(config, task.in_messages, manifest.commit)
        if manifest.settings != settings_digest(settings):
            raise UserError(
                "the files of the model have changed since the input was split "
                f"({layout.manifest}); {SPLIT_AGAIN}"
            )
        check_code(manifest.origin["files"], config)
        config = with_commit(config, manifest.commit)
        shard = Shard(config, layout, rank, manifest, task)
        if not manifest.rank_pending[rank]:
            with suppress(Unfinished):  # then something was opened again, or is gone
                shard.publish()
                logger.info("rank %d: all %d samples are done", rank, manifest.rank_samples[rank])
                return
        shard.find_pending()
        if len(shard.pending) and only_publish:
            raise Unfinished(
                f"rank {rank}: all was done when this job was started, but {len(shard.pending)} "
                "sample(s) are pending now, and the job has no GPU. Another attempt has one"
            )
        if len(shard.pending):
            logger.info("rank %d: %d of %d samples pending", rank, len(shard.pending), len(shard))
            num_workers = config.data.decode_processes(threads)
            share_cores(threads - num_workers)
            with gpus.lease_for(config) as held, job_processes() as folder:
                from video_pipeline.streaming import run_stream

                run_stream(shard, folder, num_workers, gpus.card_of(held))
        else:
            logger.info("rank %d: all %d samples are done", rank, len(shard))
        shard.publish()


def share_cores(cores: int) -> None:
    """Leave ``cores`` to this process and the engine's; the others are for decoding.

    Snakemake has told them to take all cores of the job each. Their threads wait asleep: one that
    spins, as OpenMP's do by default, takes its core from a decode process.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores))
    os.environ["OMP_WAIT_POLICY"] = "passive"


class Unfinished(EnvironmentFault):
    """A sample of the chunk has no record. Another attempt infers it."""


class Shard:
    """One rank's chunk and what the journal says about it.

    Attributes:
        config: The configuration.
        task: The task.
        chunk: The entries of the chunk.
        rank: The rank.
        with_videos: Whether the dataset reads videos.
        code: The user's code as split saw it, see :func:`video_pipeline.origin.check_code`.
        pending: Positions in the chunk that are still to be inferred, in input order.
        deaths: Of the pending samples that were in an engine when it died, how often.
        error_rate: Failures among the finished samples.
    """

    def __init__(
        self, config: Config, layout: Layout, rank: int, manifest: Manifest, task: Task
    ) -> None:
        self.config = config
        self.task = task
        self.rank = rank
        self.with_videos = manifest.with_videos
        self.code: dict[str, str | None] = manifest.origin["files"]
        self.chunk = manifest.open_chunk(layout, rank)
        self._layout = layout
        self._manifest = manifest
        self._journal = Path(manifest.journal)
        self._attempts = attempt_prefix(manifest.split_id, rank)
        self.error_rate = ErrorRate(config.run.max_error_rate)
        self.pending = array("Q")
        self.deaths: dict[int, int] = {}
        self._open_parts: dict[int, frozenset[str]] = {}

    def find_pending(self) -> None:
        """Fill in ``pending``, ``deaths`` and ``error_rate``."""
        index = self._index()
        with JournalReader(self._journal, index) as reader:
            for position, entry in enumerate(self.chunk):
                done = entry.find(reader)
                if len(done) == len(entry.requests):
                    failures = map(self._failure, done.values())
                    self.error_rate.count(next(filter(None, failures), None))
                    continue
                self.pending.append(position)
                if done:
                    self._open_parts[position] = frozenset(entry.requests.keys() - done.keys())
                deaths = max(len(index.deaths(*question)) for question in entry.questions)
                if deaths:
                    self.deaths[position] = deaths

    def _failure(self, finished: Finished) -> dict[str, str] | None:
        """The error that a finished record counts as, as far as the journal tells: what ``parse``
        says is known when the rank file is written."""
        record = finished.record
        if "__error" in record:
            return record["__error"]
        return why_no_answer(record["__usage"], record["output_text"], self.config)

    def __len__(self) -> int:
        return len(self.chunk)

    def _index(self) -> JournalIndex:
        return self._manifest.read_index(self.rank)

    def questions(self, position: int) -> list[Question]:
        """What is still to be asked about a pending sample."""
        questions, parts = self.chunk[position].questions, self._open_parts.get(position)
        return [each for each in questions if parts is None or each.part in parts]

    def open_journal(self) -> JournalWriter:
        """A new journal file for this attempt."""
        return JournalWriter(self._journal, self._attempts)

    def check_requests(self) -> None:
        """Build the messages of the first pending samples again, in this process.

        Raises :class:`TaskError` if they differ from those that split built.
        """
        for position in self.pending[:TWICE]:
            entry = self.chunk[position]
            raw = entry.raw
            sample = task_sample(entry.key, raw, self.config)
            video = raw.get(self.config.data.video_field)
            fields = self._manifest.sample_fields
            check_deterministic(self.task, sample, video, entry.requests, fields)

    def try_parse(self, position: int, part: str, output_text: str) -> bool:
        """Parse one answer; returns whether that went well. Raises :class:`TaskError` if the task
        breaks its contract; what else goes wrong becomes the sample's error record later."""
        entry = self.chunk[position]
        sample = task_sample(entry.key, entry.raw, self.config)
        try:
            self.task.parsed(output_text, sample, part)
        except TaskError:
            raise
        except Exception as error:
            logger.warning(
                "sample %s: parse failed: %s: %s", entry.key, type(error).__name__, error
            )
            return False
        return True

    def reopen_read_failures(self) -> int:
        """Open the chunk's own failures to read again; returns how many there were."""
        return reopen_errors(self.chunk, self._index(), self._journal, STORAGE_STAGES)

    def publish(self) -> None:
        """Write the rank file: the journal's records, parsed, in the order of the chunk.

        Raises :class:`Unfinished` if a sample has no record, and :class:`UserError` if more than
        ``run.max_error_rate`` of them are errors of another stage than ``parse``.
        """
        records = RecordBuilder(self.config, self.task)
        rate = ErrorRate(self.config.run.max_error_rate)
        split_id = self._manifest.split_id
        with (
            JournalReader(self._journal, self._index()) as reader,
            writing(self._layout, self.rank, split_id) as rank_file,
        ):
            for entry in self.chunk:
                done = entry.find(reader)
                if len(done) < len(entry.requests):
                    raise Unfinished(
                        f"{self._journal}: sample {entry.key} has no record, though the job is "
                        "over: the journal was changed. Run the same command again; only this "
                        "sample is inferred"
                    )
                record = records.build(entry, {part: each.record for part, each in done.items()})
                rate.count(record.error)
                rank_file.write(record, (each.location for each in done.values()))
            rate.check(f"rank {self.rank}")
        if unparsed := describe_unparsed(rate.unparsed):
            last = "{type}: {message}".format(**rate.last_unparsed)
            logger.warning("rank %d: %s; the last: %s", self.rank, unparsed, last)
