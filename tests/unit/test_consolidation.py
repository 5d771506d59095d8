"""Consolidate: one record for each distinct sample, in input order, or an error that says why."""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from pathlib import Path

import pytest
from helpers import ERROR, EXPAND, few_open_files, keys, read_jsonl, samples
from video_pipeline.commands.retry import retry
from video_pipeline.common.files import Seal
from video_pipeline.errors import UserError
from video_pipeline.export.export import export
from video_pipeline.infer.infer import infer
from video_pipeline.journal import reader
from video_pipeline.journal.format import split_of
from video_pipeline.output.consolidation import consolidate, consolidate_partial
from video_pipeline.report.page import collect
from video_pipeline.report.summary import read_summary
from video_pipeline.run.origin import output_is_damaged
from video_pipeline.run.sharding import Sharding
from video_pipeline.samples.windows import CUT

pytestmark = pytest.mark.slow


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
        "dropped": 0,
        "ok": 9,
        "error": 1,
        "errors_by_stage": {"read": 1},
        "truncated": 0,
        "truncated_at": {},
        "damaged": 0,
        "stay_cut_off": 0,
    }
    assert summary["usage"] == {"prompt_tokens": 9, "completion_tokens": 18}
    assert summary["model"] == "simulated"
    assert summary["task"] == "ask"
    assert summary["output"].endswith("out.jsonl")
    attempts = finished.run.journals()[0].glob("attempt.*.jsonl")
    assert summary["splits"] == sorted({split_of(path.name) for path in attempts})


def test_the_log_says_how_much_is_finished(finished, caplog):
    caplog.set_level("INFO")
    consolidate_partial(finished.run.config, finished.layout)
    assert caplog.messages[-1] == f"{finished.layout.partial}: 10 of 10 samples"


def test_a_run_without_an_answer_has_no_output(splitting):
    """Three of its ranks are empty."""
    splitting(samples(2), 1).finish(failed=("0", "1"))
    splitting(num_shards=5)
    for rank in range(5):
        infer(splitting.run.config, splitting.layout, rank, 1)
    expected = r"none of the 2 samples .*answered \(read: 2\).*video.pipeline retry --directory"
    with pytest.raises(UserError, match=expected):
        consolidate(splitting.run.config, splitting.layout)
    assert not splitting.run.output.exists()


def test_what_a_damaged_rank_file_holds_is_said(finished):
    path = finished.layout.rank_file(1)
    lines = path.read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])["__key"]
    for damaged, message in (
        (lines[:-1], f"expected sample '{last}', found the end of the file"),
        ([*lines, lines[-1]], f"expected the end of the file, found '{last}'"),
    ):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(UserError, match=message):
            consolidate(finished.run.config, finished.layout)


def test_a_chunk_that_is_damaged_too_is_the_cause(finished):
    finished.layout.rank_file(1).write_bytes(b"")
    finished.layout.chunk(1).write_bytes(b"")
    with pytest.raises(UserError, match="--forcerun split"):
        consolidate(finished.run.config, finished.layout)


def test_an_input_that_looks_like_an_error_is_none(splitting):
    entries = [{**sample, "old": {"a": 1, "__status": "error", "b": 2}} for sample in samples(3)]
    lines = [json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries]
    (splitting.run.folder / "samples.jsonl").write_text("".join(lines))
    splitting(num_shards=1).finish("0", "2", failed=("1",))
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert [record["__key"] for record in read_jsonl(splitting.layout.errors)] == ["1"]


def test_rather_no_rank_file_than_one_that_was_not_written_down(finished, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("video_pipeline.output.rank_files.write_text", fail)
    with pytest.raises(OSError, match="the disk is full"):
        infer(finished.run.config, finished.layout, 0, 1)
    assert not finished.layout.rank_file(0).exists()


def test_a_rank_file_is_on_the_disk_before_it_is_written_down(finished, synced):
    infer(finished.run.config, finished.layout, 0, 1)
    folder, written = (
        finished.layout.rank_file(0).parent,
        synced.index(f"-> {finished.layout.contents(0)}"),
    )
    assert any(Path(name).parent == folder.absolute() for name in synced[:written])


def test_a_real_model_is_named(splitting):
    """Everything is in the journal, so none is loaded."""
    splitting.run.configure(
        run={"engine": "vllm"}, vllm={"model": "some/model", "revision": "0" * 40}
    )
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
    monkeypatch.delattr("video_pipeline.output.rank_files._parse")
    monkeypatch.delattr("video_pipeline.run.chunks.ChunkEntry.from_line")
    consolidate(splitting.run.config, splitting.layout)
    assert [record["__key"] for record in splitting.run.records()] == keys(10)


def test_a_missing_rank_file_is_named(finished):
    finished.layout.rank_file(2).unlink()
    with pytest.raises((UserError, FileNotFoundError), match=r"out\.rank2\.jsonl"):
        consolidate(finished.run.config, finished.layout)


def test_rank_files_of_another_split_do_not_pass(finished):
    """The input is split anew in another order, and somebody puts the rank files back."""
    earlier = {path: path.read_bytes() for path in finished.layout.rank_files()}
    finished(list(reversed(samples(10))), 3)
    with pytest.raises(UserError, match=r"out\.rank0\.jsonl is missing; run snakemake again"):
        consolidate(finished.run.config, finished.layout)
    for path, data in earlier.items():
        path.write_bytes(data)
    with pytest.raises(UserError, match="expected sample '9', found"):
        consolidate(finished.run.config, finished.layout)


@pytest.mark.parametrize("with_contents", [False, True])
def test_rank_files_that_changed_places_do_not_pass(splitting, with_contents):
    """Also with what was written down of them."""
    finished = splitting(samples(10), 2)
    for rank in (0, 1):
        infer(finished.run.config, finished.layout, rank, 1)
    kinds = [finished.layout.rank_file, *([finished.layout.contents] if with_contents else [])]
    for kind in kinds:
        one, two = kind(0).read_bytes(), kind(1).read_bytes()
        kind(0).write_bytes(two)
        kind(1).write_bytes(one)
    with pytest.raises(UserError, match=r"out\.rank0\.jsonl, line 1: expected sample '0', found"):
        consolidate(finished.run.config, finished.layout)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"samples": 4}'])
def test_what_was_written_down_of_a_rank_file_is_damaged(finished, text):
    finished.layout.contents(1).write_text(text)
    with pytest.raises(UserError, match=r"out\.rank1\.jsonl: not what was written there"):
        consolidate(finished.run.config, finished.layout)


def test_an_earlier_version_did_not_count_damaged_videos(finished):
    for rank in range(3):
        path = finished.layout.contents(rank)
        contents = json.loads(path.read_text())
        assert contents.pop("damaged") == 0
        path.write_text(json.dumps(contents))
    consolidate(finished.run.config, finished.layout)
    summary = finished.run.summary()
    assert summary["samples"].pop("damaged") == 0
    finished.layout.summary.write_text(json.dumps(summary))
    assert read_summary(finished.layout)["samples"]["damaged"] == 0


# --- the order and the chunks --------------------------------------------------------------------


def nothing(data):
    return b""


def shorter(data):
    return data[:-8]


def half_a_number(data):
    return data[:-2]


def longer(data):
    return data + data[:4]


def reversed_order(data):
    """Of another split: the same counts, another order."""
    return array("I", data)[::-1].tobytes()


ORDERS = [nothing, shorter, half_a_number, longer, reversed_order, None]


def test_a_partial_output_opens_a_journal_file_for_many_records(splitting, monkeypatch):
    """Samples are in the order of the input, and neighbours are in the files of two ranks."""
    num_ranks, opened = 40, Counter()  # more than a reader keeps open

    def counting(path, *arguments, **options):
        opened[path.name] += 1
        return open(path, *arguments, **options)

    splitting(samples(num_ranks * 5), num_ranks).finish(*keys(num_ranks * 5 - 1))
    monkeypatch.setattr(reader, "open", counting, raising=False)
    consolidate_partial(splitting.run.config, splitting.layout)
    records = read_jsonl(splitting.layout.partial)
    assert [record["__key"] for record in records] == keys(num_ranks * 5 - 1)
    assert opened.total() == num_ranks


@pytest.mark.parametrize("read", [consolidate, consolidate_partial])
@pytest.mark.parametrize("damage", ORDERS, ids=lambda damage: damage.__name__ if damage else "gone")
def test_an_order_that_is_not_of_this_split(finished, damage, read):
    path = finished.layout.order
    if damage is None:
        path.unlink()
    else:
        assert damage(path.read_bytes()) != path.read_bytes()
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"order\.bin: .*--forcerun split"):
        read(finished.run.config, finished.layout)
    assert not finished.run.output.exists()
    assert not finished.layout.partial.exists()
    assert not finished.layout.summary.exists()


def uneven(data):
    """One sample of rank 1 is said to be of rank 0."""
    order = array("I", data)
    order[order.index(1)] = 0
    return order.tobytes()


@pytest.mark.parametrize(
    "damage", [nothing, shorter, longer, uneven], ids=lambda damage: damage.__name__
)
def test_what_is_written_is_counted(finished, damage):
    """Even where the manifest says that such an order is right."""
    layout = finished.layout
    layout.order.write_bytes(damage(layout.order.read_bytes()))
    content = json.loads(layout.manifest.read_text())
    layout.manifest.write_text(json.dumps({**content, "order": Seal.of(layout.order)}))
    with pytest.raises(UserError, match=r"order\.bin: .*--forcerun split"):
        consolidate(finished.run.config, layout)
    assert not finished.run.output.exists()
    assert not layout.errors.exists()


def truncated(chunks):
    return [chunks[0][: len(chunks[0]) // 2], *chunks[1:]]


def torn(chunks):
    return [b"".join(chunks[0].splitlines(keepends=True)[:-1]), *chunks[1:]]


def exchanged(chunks):
    return [chunks[1], chunks[0], *chunks[2:]]


def reordered(chunks):
    return [b"".join(chunks[0].splitlines(keepends=True)[::-1]), *chunks[1:]]


def edited(chunks):
    return [chunks[0].replace(b".mp4", b".mp5"), *chunks[1:]]


@pytest.mark.parametrize("read", [consolidate_partial, infer, retry])
@pytest.mark.parametrize(
    "damage", [truncated, torn, exchanged, reordered, edited], ids=lambda damage: damage.__name__
)
def test_a_chunk_that_is_not_of_this_split(finished, damage, read):
    layout, config = finished.layout, finished.run.config
    Sharding(3).write(layout.sharding)
    paths = [layout.chunk(rank) for rank in range(3)]
    for path, data in zip(paths, damage([path.read_bytes() for path in paths]), strict=True):
        path.write_bytes(data)
    arguments = {consolidate_partial: (config, layout), infer: (config, layout, 0, 1)}
    with pytest.raises(UserError, match=r"of-3/rank0\.jsonl: .*--forcerun split"):
        read(*arguments.get(read, (config,)))
    assert not layout.partial.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"split_id": "a"}'])
def test_a_damaged_manifest_is_named(finished, text):
    """Also one of an earlier version, which does not know what the chunks hold."""
    finished.layout.manifest.write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: .*--forcerun split"):
        consolidate(finished.run.config, finished.layout)


# --- the output after it was written -------------------------------------------------------------


def report(config, layout):
    return collect(config, layout, 1)


@pytest.mark.parametrize("read", [report, export])
@pytest.mark.parametrize(
    "damage", [cut_last, empty, add, swap, tear, garbage, other_answer], ids=lambda d: d.__name__
)
def test_an_output_that_has_changed_is_not_taken_for_the_result(finished, damage, read):
    config, layout = finished.run.config, finished.layout
    consolidate(config, layout)
    read(config, layout)
    shutil.rmtree(layout.dataset, ignore_errors=True)
    lines = layout.output.read_bytes().splitlines(keepends=True)
    layout.output.write_bytes(b"".join(damage(lines)))
    with pytest.raises(UserError, match=r"out\.jsonl: it has changed .*run snakemake again"):
        read(config, layout)
    assert not layout.dataset.exists()


def test_a_summary_of_another_run_is_not_taken_for_its_own(finished):
    consolidate(finished.run.config, finished.layout)
    another = json.loads(finished.layout.summary.read_text())
    del another["output_file"]
    finished.layout.summary.write_text(json.dumps(another))
    with pytest.raises(
        UserError, match=r"out\.summary\.json is damaged, or was written by an earlier"
    ):
        read_summary(finished.layout)


# --- the failed samples --------------------------------------------------------------------------


def test_the_error_records_are_a_file_of_their_own(finished):
    consolidate(finished.run.config, finished.layout)
    assert read_jsonl(finished.layout.errors) == finished.run.records()[:1]
    assert read_jsonl(finished.layout.errors)[0]["__error"] == ERROR


def test_without_failures_the_file_of_errors_is_empty(splitting):
    splitting(samples(3), 1).finish(*keys(3))
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert splitting.layout.errors.read_bytes() == b""


@pytest.mark.parametrize("id_field", ["id", None])
def test_error_records_alone_are_the_samples(splitting, id_field):
    """The same samples as before, so the journal knows them."""
    splitting.run.configure(data={"id_field": id_field})
    splitting([*samples(4), {"path": "x", "id": 9, "input": {"deep": 1}, "previous": {"a": 1}}], 1)
    ((answered, *failed),) = splitting.keys
    splitting.finish(answered, failed=tuple(failed))
    splitting.run.configure(run={"max_error_rate": 1.0})
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    raws = [entry.raw for entry in splitting.chunks[0]][1:]
    layout = splitting.layout
    layout.errors.rename(splitting.run.folder / "failed.jsonl")
    splitting.run.configure(data={"input_jsonl": "failed.jsonl"})
    splitting(num_shards=1)
    assert splitting.keys == [failed]
    assert splitting.pending == []
    assert [entry.raw for entry in splitting.chunks[0]] == raws
    assert (splitting.manifest.lines, splitting.manifest.left_out) == (4, 0)
    assert layout.journal == splitting.layout.journal


def test_error_records_of_many_blocks_are_the_samples(splitting):
    entries = [{**sample, "caption": "x" * 3000} for sample in samples(301)]
    *failed, answered = keys(301)
    splitting(entries, 1).finish(answered, failed=tuple(failed))
    splitting.run.configure(run={"max_error_rate": 1.0})
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    splitting.run.configure(
        data={"input_jsonl": "results/out.errors.jsonl", "output_jsonl": "again/out.jsonl"}
    )
    splitting(num_shards=2, num_processes=2)
    assert splitting.order == keys(300)
    assert splitting.manifest.lines == 300


@pytest.mark.parametrize("more", [{"id": 7, "path": "new.mp4"}, "{no JSON"])
def test_error_records_among_others_are_left_out(splitting, more):
    error = {"__key": "0", "__status": "error", "__error": ERROR, "input": samples(1)[0]}
    text = more if isinstance(more, str) else json.dumps(more)
    (splitting.run.folder / "samples.jsonl").write_text(f"{json.dumps(error)}\n{text}\n")
    if isinstance(more, str):
        with pytest.raises(UserError, match="1 bad line"):
            splitting()
    else:
        assert splitting().order == ["0", "7"]
        assert splitting.manifest.left_out == 1
        assert [record["__key"] for record in splitting.left_out] == ["0"]


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
    without_input = [{n: v for n, v in r.items() if n != "input"} for r in records]
    assert [{n: clip[n] for n in clip if n not in CUT} for clip in clips] == without_input
    # it is no output of a rule, so that it is there is looked at here
    assert not output_is_damaged(splitting.layout)
    splitting.layout.videos.unlink()
    assert output_is_damaged(splitting.layout)
    consolidate(splitting.run.config, splitting.layout)
    assert read_jsonl(splitting.layout.videos) == videos


def test_without_windows_nothing_is_put_together(finished):
    """Nor stays what an earlier run of the same output, with windows, has put together."""
    finished.layout.videos.write_text("{}")
    consolidate(finished.run.config, finished.layout)
    assert not finished.layout.videos.exists()
    assert not output_is_damaged(finished.layout)


def test_the_output_is_an_input(finished):
    """A second task over the answers of the first; the error record is a record again."""
    consolidate(finished.run.config, finished.layout)
    run = finished.run
    run.configure(data={"input_jsonl": "results/out.jsonl", "output_jsonl": "results/next.jsonl"})
    finished(num_shards=1)
    assert finished.manifest.left_out == 1
    assert finished.order == keys(10)
    assert finished.keys == [keys(10)[1:]]
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
    monkeypatch.setattr("video_pipeline.run.chunks._READ_AHEAD_BYTES", 1)
    entries = [{**sample, "caption": "x" * 5000} for sample in samples(100)]
    splitting(entries, 1).finish(*keys(100))
    splitting(num_shards=2)
    for rank in range(2):
        infer(splitting.run.config, splitting.layout, rank, 1)
    consolidate(splitting.run.config, splitting.layout)
    assert [record["input"] for record in splitting.run.records()] == entries
