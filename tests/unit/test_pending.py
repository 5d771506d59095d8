"""Whether a job needs no GPU, as far as files tell."""

from __future__ import annotations

import json
import os

import pytest
from video_pipeline.journal.format import REOPENS, attempt_prefix
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.layout import Layout
from video_pipeline.workflow.pending import needs_no_gpu, num_pending


@pytest.fixture
def layout(tmp_path):
    """A split into three ranks: the first has nothing pending."""
    layout = Layout(tmp_path / "out.jsonl", 3)
    layout.chunks.mkdir(parents=True)
    (layout.journal / "0f3c").mkdir(parents=True)
    write_manifest(layout, "s", [0, 1, 1])
    return layout


def write_manifest(layout: Layout, split_id: str, pending: list[int], at: int = 100) -> None:
    values = {"split_id": split_id, "rank_pending": pending, "journal": "elsewhere/0f3c"}
    layout.manifest.write_text(json.dumps(values))
    os.utime(layout.manifest, (at, at))


def publish(layout: Layout, rank: int, split_id: str, at: int) -> None:
    layout.contents(rank).write_text(json.dumps({"split_id": split_id}))
    os.utime(layout.contents(rank), (at, at))


def reopen(layout: Layout, at: int) -> None:
    with JournalWriter(layout.journal / "0f3c", REOPENS) as writer:
        writer.reopen("k", "", "r", "attempt.1.jsonl")
    os.utime(writer.path, (at, at))


def publishing(layout: Layout) -> list[int]:
    return [rank for rank in range(3) if needs_no_gpu(layout, rank)]


def test_what_is_pending_changes_with_each_split_and_job(layout):
    assert publishing(layout) == [0]
    publish(layout, 1, "an earlier split", at=90)
    publish(layout, 2, "s", at=110)
    assert publishing(layout) == [0, 2]
    write_manifest(layout, "another", [1, 0, 1], at=120)
    assert publishing(layout) == [1]
    layout.manifest.unlink()
    assert publishing(layout) == []


def test_errors_that_were_opened_again_may_be_of_any_rank(layout):
    publish(layout, 2, "s", at=110)
    reopen(layout, at=50)
    assert publishing(layout) == [0, 2]
    reopen(layout, at=105)
    assert publishing(layout) == [2]
    reopen(layout, at=115)
    assert publishing(layout) == []


def test_a_damaged_manifest_takes_no_gpu_away(layout):
    layout.manifest.write_text("{")
    assert publishing(layout) == []


def test_a_number_is_said_only_while_it_is_right(layout):
    def numbers() -> list[int | None]:
        return [num_pending(layout, rank) for rank in range(3)]

    write_manifest(layout, "s", [0, 5, 7])
    assert numbers() == [0, 5, 7]
    # a job has begun, so some of its samples may be finished
    with JournalWriter(layout.journal / "0f3c", attempt_prefix("s", 1)):
        pass
    assert numbers() == [0, None, 7]
    with JournalWriter(layout.journal / "0f3c", attempt_prefix("an earlier split", 2)):
        pass
    assert numbers() == [0, None, 7]
    reopen(layout, at=200)
    assert numbers() == [None, None, None]
    layout.manifest.unlink()
    assert numbers() == [None, None, None]
