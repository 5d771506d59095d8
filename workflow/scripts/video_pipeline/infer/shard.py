"""A shard: one rank's chunk, and the records of its samples in the journal."""

from __future__ import annotations

import logging
from array import array
from pathlib import Path

from video_pipeline.config import Config
from video_pipeline.decode.preparing import ChunkSamples, WorkerSpec
from video_pipeline.engine import create_engine
from video_pipeline.engine.base import Answer, Constraints, Engine, EngineDead
from video_pipeline.errors import EnvironmentFault, TaskError, UserError, explain
from video_pipeline.infer.prefetch import Prefetcher
from video_pipeline.infer.quarantine import QUARANTINE_DEATHS, quarantine_error
from video_pipeline.journal.format import attempt_prefix, count_answers
from video_pipeline.journal.reader import JournalReader
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.output.rank_files import writing
from video_pipeline.output.records import RecordBuilder, json_of
from video_pipeline.run.answers import describe_unparsed, error_of
from video_pipeline.run.chunks import Question
from video_pipeline.run.error_rate import ErrorRate
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.reopening import find_errors, write_reopens
from video_pipeline.samples.identity import TWICE, check_deterministic
from video_pipeline.tasks.base import Task

logger = logging.getLogger(__name__)

STORAGE_STAGES = frozenset({"read", "timeout"})
"""Stages of errors that may come from a storage that is gone for a while."""


class Unfinished(EnvironmentFault):
    """A sample of the chunk has no record. Another attempt infers it."""


class Shard:
    """One rank's chunk, and the records of its samples in the journal.

    Attributes:
        chunk: The entries of the chunk.
        pending: Positions of the pending samples in the chunk, in input order.
        deaths: The number of deaths of an engine with a pending sample in it, by position, if it is
            not 0.
        quarantined: The ``__error`` of pending samples that are not tried again, by position.
        error_rate: Failures among the finished samples.
    """

    def __init__(
        self, config: Config, layout: Layout, rank: int, manifest: Manifest, task: Task
    ) -> None:
        self.config = config
        self.task = task
        self.rank = rank
        self.chunk = manifest.open_chunk(layout, rank)
        self.pending = array("Q")
        self.deaths: dict[int, int] = {}
        self.quarantined: dict[int, dict[str, str]] = {}
        self.error_rate = ErrorRate(config.run.max_error_rate, len(self.chunk))
        self._samples = ChunkSamples(self.chunk, config)
        self._layout = layout
        self._manifest = manifest
        self._journal = Path(manifest.journal)
        self._open_parts: dict[int, frozenset[str]] = {}

    def find_pending(self) -> None:
        """Fill in ``pending``, ``deaths``, ``quarantined`` and ``error_rate``."""
        index = self._manifest.read_index(self.rank)
        with JournalReader(self._journal, index) as reader:
            for position, entry in enumerate(self.chunk):
                done = entry.find(reader)
                if len(done) == len(entry.requests):
                    errors = (error_of(answer.record, self.config) for answer in done.values())
                    self.error_rate.count(next(filter(None, errors), None))
                    continue
                self.pending.append(position)
                if done:
                    self._open_parts[position] = frozenset(entry.requests.keys() - done.keys())
                deaths, question = max((len(index.deaths(*q)), q) for q in entry.questions)
                if deaths:
                    self.deaths[position] = deaths
                if deaths >= QUARANTINE_DEATHS:
                    cause = reader.cause_of_death(*question)
                    self.quarantined[position] = quarantine_error(deaths, cause)

    def __len__(self) -> int:
        return len(self.chunk)

    def questions(self, position: int) -> list[Question]:
        """The questions about a pending sample that have no answer yet."""
        questions, parts = self.chunk[position].questions, self._open_parts.get(position)
        return [question for question in questions if parts is None or question.part in parts]

    def create_engine(self) -> Engine:
        """The engine, configured but not started. Raises :class:`UserError` if it cannot do what
        the task asks for."""
        engine = create_engine(self.config, with_videos=self._manifest.with_videos)
        for part in {question.part for question in self.questions(self.pending[0])}:
            engine.check(Constraints(self.task.json_schema(part)))
        return engine

    def constraints(self, position: int, part: str) -> Constraints:
        """The constraints of the answer to ``part``, about the sample at ``position``."""
        return Constraints.of(self.task, part, self._samples[position])

    def worker_spec(self, engine: Engine, folder: Path) -> WorkerSpec:
        """The work of the decode processes for ``engine``; ``folder`` is in shared memory."""
        return WorkerSpec(
            config=self.config,
            chunk=self.chunk.path,
            seal=self.chunk.seal,
            model=engine.dataset_model,
            preparer=engine.preparer(),
            folder=folder,
            files=self._manifest.origin["files"],
            decoder=self.config.vision.decoder,
        )

    def create_prefetcher(self, num_processes: int) -> Prefetcher:
        """The prefetcher for the pending samples, ahead of so many decode processes."""
        return Prefetcher(self.config, self._samples, num_processes)

    def open_journal(self) -> JournalWriter:
        """A new journal file for this attempt."""
        return JournalWriter(self._journal, attempt_prefix(self._manifest.split_id, self.rank))

    def check_requests(self) -> None:
        """Build the messages of the first pending samples again, in this process. Raises
        :class:`TaskError` if they differ from those that split built."""
        for position in self.pending[:TWICE]:
            sample, requests = self._samples[position], self.chunk[position].requests
            video = sample.get(self.config.data.video_field)
            fields = self._manifest.sample_fields
            check_deterministic(self.task, sample, video, requests, fields)

    def try_parse(self, position: int, part: str, answer: Answer) -> bool:
        """Parse one answer; returns whether that worked. Raises :class:`TaskError` if the task
        breaks its contract. Any other exception becomes the sample's error record later."""
        sample = self._samples[position]
        try:
            json_of(self.task.parsed(answer.output_text, sample, part, answer.logprobs))
        except TaskError:
            raise
        except (Exception, SystemExit) as error:
            logger.warning("sample %s: parse failed: %s", self.chunk[position].key, explain(error))
            return False
        return True

    def count_finished(self, error: dict[str, str] | None = None, under_way: int = 0) -> None:
        """Count a finished sample, with its ``__error`` if it failed. ``under_way``: samples that
        wait for their answer, see :meth:`ErrorRate.exceeded`.

        Raises:
            UserError: More than ``run.max_error_rate`` of the samples have failed. Failures to read
                are then open again for the next run: the storage may be back.
        """
        self.error_rate.count(error)
        if error is not None and self.error_rate.exceeded(under_way):
            index = self._manifest.read_index(self.rank)
            errors = find_errors(self.chunk, index, self._journal, STORAGE_STAGES)
            reopened = write_reopens(self._journal, list(errors))
            self.error_rate.check(self.rank, reopened, under_way)

    def check_engine(self, death: EngineDead) -> None:
        """Decide whether a sample killed the engine, or the settings or the machine did.

        Raises:
            UserError: The engine has answered nothing yet, on any rank, and has died of two samples
                that were alone in it. The samples are not at fault, so their deaths are taken back.
        """
        index = self._manifest.read_index(self.rank)
        deaths = {
            question: set(index.deaths(*question))
            for position in self.pending
            for question in self.chunk[position].questions
        }
        killers = {
            question.key for question, files in deaths.items() if len(files) >= QUARANTINE_DEATHS
        }
        if len(killers) < min(2, len(self.pending)) or count_answers(self._journal):
            return
        for question, files in find_errors(self.chunk, index, self._journal, {"quarantine"}):
            # An earlier attempt may have written the error, and then the sample is not pending.
            deaths.setdefault(question, set()).update(files)
        write_reopens(self._journal, [death for death in deaths.items() if death[1]])
        raise UserError(
            f"rank {self.rank}: the engine dies of each sample, and has answered none; the last "
            f"time of: {death}. Change what it names in the sections vllm and sampling, or look at "
            "the machine, and run again"
        )

    def write_rank_file(self) -> None:
        """Write the rank file: the journal's records, parsed, in the order of the chunk.

        Raises:
            Unfinished: A sample has no record.
            UserError: More than ``run.max_error_rate`` of the samples failed, in another stage than
                ``parse``.
        """
        records = RecordBuilder(self.config, self.task)
        rate = ErrorRate(self.config.run.max_error_rate, len(self))
        split_id = self._manifest.split_id
        with (
            JournalReader(self._journal, self._manifest.read_index(self.rank)) as reader,
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
                record = records.build(entry, {part: done[part].record for part in done})
                rate.count(record.error)
                rank_file.write(record, (finished.location for finished in done.values()))
            rate.check(self.rank)
        if unparsed := describe_unparsed(rate.unparsed):
            last = "{type}: {message}".format(**rate.last_unparsed)
            logger.warning("rank %d: %s; the last: %s", self.rank, unparsed, last)
