"""Takes errors back, so that their samples are pending again."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path

from video_pipeline.common.files import read_object
from video_pipeline.config import Config
from video_pipeline.journal.format import REOPENS
from video_pipeline.journal.index import JournalIndex
from video_pipeline.journal.reader import JournalReader
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.chunks import Chunk, Question
from video_pipeline.run.layout import Layout

STAGES = ("read", "timeout", "crash", "generate", "length", "quarantine")
"""Stages of errors in the journal. ``parse`` is not among them: a run parses all answers again."""


def stages_to_retry(config: Config) -> list[str]:
    """The stages whose errors may end differently now. An answer that was cut off would be cut off
    again, unless ``run.retry_truncated`` allows a longer one; free text is never among them."""
    return [stage for stage in STAGES if stage != "length" or config.run.retry_truncated]


def count_failed(layout: Layout, config: Config) -> tuple[int, int]:
    """How many failed samples of the output ``retry`` opens, and how many whose answer was cut off
    it does not; 0 if there is no summary."""
    counts = read_object(layout.summary).get("samples", {})
    stages = counts.get("errors_by_stage", {})
    stay = counts.get("stay_cut_off", 0) if config.run.retry_truncated else stages.get("length", 0)
    return sum(stages.get(stage, 0) for stage in STAGES) - stay, stay


def find_errors(
    chunk: Chunk, index: JournalIndex, journal: Path, stages: Container[str]
) -> Iterator[tuple[Question, set[str]]]:
    """The questions with an error of ``stages``, and the journal files that hold it."""
    with JournalReader(journal, index) as reader:
        for entry in chunk:
            for question in entry.questions:
                known = entry.done.get(question.part)
                location = index.find(*question, known)
                if location is None or not location.is_error:
                    continue  # Most records are answers, which need not be read.
                finished = reader.find(*question, known)
                if finished is None or "__error" not in finished.record:
                    continue
                if finished.record["__error"]["stage"] in stages:
                    yield question, {finished.location.file, *index.deaths(*question)}


def write_reopens(journal: Path, errors: list[tuple[Question, set[str]]]) -> int:
    """Take back the ``errors`` of :func:`find_errors`. Returns the number of their samples."""
    if not errors:
        return 0
    with JournalWriter(journal, REOPENS) as writer:
        for question, files in errors:
            for file in files:
                writer.reopen(*question, file)
    return len({question.key for question, _ in errors})
