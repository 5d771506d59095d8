"""Consolidate: one record for each distinct sample, in input order, or an error that says why."""

from __future__ import annotations

import json

import pytest
from helpers import ERROR, EXPAND, few_open_files, keys, read_jsonl, samples
from video_pipeline.consolidation import consolidate, consolidate_partial
from video_pipeline.errors import UserError
from video_pipeline.inference import infer
from video_pipeline.windows import CUT


@pytest.fixture
def finished(splitting):
    """Ten samples, all in the journal (one as an error), with their three rank files written."""
    splitting(samples(10), 1).finish(*keys(10)[1:], failed=("0",))
    splitting([*samples(10), *samples(2)], 3)
    for rank in range(3):
        infer(splitting.run.config, splitting.layout, rank, 1)
    return splitting


def test_one_record_for_each_sample_in_input_order(finished):
    consolidate(finished.run.config, finished.layout)
    records = finished.run.records()
    assert [record["__key"] for record in records] == keys(10)
    assert [record["input"] for record in records] == samples(10)
    assert records[0]["__error"] == ERROR
    assert {record["answer"] for record in records[1:]} == {"text"}


def test_the_summary_counts(finished):
    consolidate(finished.run.config, finished.layout)
    summary = finished.run.summary()
    assert summary["samples"] == {
        "input_lines": 12,
        "distinct": 10,
        "duplicates": 2,
        "left_out": 0,
        "ok": 9,
        "error": 1,
        "errors_by_stage": {"read": 1},
    }
    assert summary["usage"] == {"prompt_tokens": 9, "completion_tokens": 18}
    assert summary["model"] == "simulated"
    assert summary["task"] == "ask"
    assert summary["output"].endswith("out.jsonl")


def test_a_real_model_is_named(splitting):
    """Everything is in the journal, so none is loaded."""
    splitting.run.configure(run={"engine": "vllm"}, vllm={"model": "some/model"})
    splitting(samples(2), 1).finish("0", "1")
    splitting(num_shards=1)
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert splitting.run.summary()["model"] == "some/model"
    assert {record["__model"] for record in splitting.run.records()} == {"some/model"}


def cut_last(lines):
    return lines[:-1]


def cut_first(lines):
    return lines[1:]


def empty(lines):
    return []


def add(lines):
    return [*lines, lines[-1]]


def swap(lines):
    return [lines[1], lines[0], *lines[2:]]


def double(lines):
    return [lines[0], lines[0], *lines[2:]]


def tear(lines):
    return [*lines[:-1], lines[-1][:40]]


def garbage(lines):
    return [*lines[:-1], b"[1]\n"]


def blank(lines):
    return [lines[0], b"\n", *lines[1:]]


def join(lines):
    """A write that was cut off, and another record after it."""
    return [lines[0][:40] + lines[1], *lines[1:]]


def other_answer(lines):
    return [line.replace(b"text", b"taxt") for line in lines]


DAMAGES = [cut_last, cut_first, empty, add, swap, double, tear, garbage, blank, join, other_answer]


@pytest.mark.parametrize("rank", [0, 1])  # the first one has an error record
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_rank_file_is_named_and_nothing_is_written(finished, damage, rank):
    path = finished.layout.rank_file(rank)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(UserError) as caught:
        consolidate(finished.run.config, finished.layout)
    assert f"out.rank{rank}.jsonl" in str(caught.value)
    assert "Remove" in str(caught.value)
    assert not finished.run.output.exists()
    assert not finished.layout.summary.exists()
    path.unlink()  # what the message says
    infer(finished.run.config, finished.layout, rank, 1)
    consolidate(finished.run.config, finished.layout)
    assert [record["__key"] for record in finished.run.records()] == keys(10)


def test_answers_are_not_parsed(splitting, monkeypatch):
    splitting(samples(10), 1).finish(*keys(10))
    splitting(num_shards=2)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    monkeypatch.delattr("video_pipeline.rank_files._parse")
    monkeypatch.delattr("video_pipeline.chunks.ChunkEntry.from_line")
    consolidate(splitting.run.config, splitting.layout)
    assert [record["__key"] for record in splitting.run.records()] == keys(10)


def test_a_missing_rank_file_is_named(finished):
    finished.layout.rank_file(2).unlink()
    with pytest.raises((UserError, FileNotFoundError), match=r"out\.rank2\.jsonl"):
        consolidate(finished.run.config, finished.layout)


def test_rank_files_of_another_split_do_not_pass(finished):
    """Three rank files lie there, the input is split anew in another order."""
    finished(list(reversed(samples(10))), 3)
    with pytest.raises(UserError, match="expected sample '9', found"):
        consolidate(finished.run.config, finished.layout)


def test_a_rank_file_from_elsewhere_does_not_pass(finished):
    """Nothing was written down about it."""
    finished.layout.contents(1).unlink()
    with pytest.raises(UserError, match=r"out\.rank1\.jsonl: not what was written there"):
        consolidate(finished.run.config, finished.layout)


def test_no_samples(splitting):
    splitting([], 2)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert read_jsonl(splitting.run.output) == []
    assert splitting.run.summary()["samples"]["distinct"] == 0


def test_more_shards_than_samples(splitting):
    splitting(samples(2), 1).finish("0", "1")
    splitting(num_shards=5)
    for rank in range(5):
        infer(splitting.run.config, splitting.layout, rank, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert [record["__key"] for record in splitting.run.records()] == ["0", "1"]


def test_records_of_windows_are_put_together_by_video(splitting):
    splitting.run.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    splitting(samples(2), 1).finish("0@0.0-1.0", "0@1.0-2.5", "1@1.0-2.5", failed=("1@0.0-1.0",))
    splitting(num_shards=2)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    consolidate(splitting.run.config, splitting.layout)
    records = splitting.run.records()
    assert [record["__key"] for record in records] == [
        *("0@0.0-1.0", "0@1.0-2.5", "1@0.0-1.0", "1@1.0-2.5")
    ]
    videos = read_jsonl(splitting.layout.videos)
    assert [video["input"] for video in videos] == samples(2)
    clips = [clip for video in videos for clip in video["clips"]]
    assert [len(video["clips"]) for video in videos] == [2, 2]
    assert [(clip["video_start"], clip["video_end"]) for clip in clips] == [(0, 1), (1, 2.5)] * 2
    without_input = [{n: v for n, v in each.items() if n != "input"} for each in records]
    assert [{n: clip[n] for n in clip if n not in CUT} for clip in clips] == without_input


def test_without_windows_nothing_is_put_together(finished):
    consolidate(finished.run.config, finished.layout)
    assert not finished.layout.videos.exists()


def test_the_output_is_an_input(finished):
    """A second task over the answers of the first; the error record is left out."""
    consolidate(finished.run.config, finished.layout)
    run = finished.run
    run.configure(data={"input_jsonl": "results/out.jsonl", "output_jsonl": "results/next.jsonl"})
    finished(num_shards=1)
    assert finished.manifest.left_out == 1
    assert finished.order == keys(10)[1:]
    raw = finished.chunks[0][0].raw
    assert raw["path"] == "1.mp4"
    assert raw["previous"]["answer"] == "text"
    assert json.dumps(raw).count('"path"') == 1


def test_more_ranks_than_files_may_be_open(splitting):
    splitting(samples(150), 1).finish(*keys(150)[1:], failed=("0",))
    splitting(num_shards=120)
    for rank in range(120):
        infer(splitting.run.config, splitting.layout, rank, 1)
    with few_open_files(40):
        consolidate_partial(splitting.run.config, splitting.layout)
        consolidate(splitting.run.config, splitting.layout)
    assert [record["__key"] for record in splitting.run.records()] == keys(150)
    assert read_jsonl(splitting.layout.partial) == splitting.run.records()


def test_rank_files_of_many_blocks(splitting, monkeypatch):
    """They are read in pieces, each of at least 64 kB."""
    monkeypatch.setattr("video_pipeline.chunks._READ_AHEAD_BYTES", 1)
    entries = [{**sample, "caption": "x" * 5000} for sample in samples(100)]
    splitting(entries, 1).finish(*keys(100))
    splitting(num_shards=2)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert [record["input"] for record in splitting.run.records()] == entries
