"""``data.where``: what it drops is counted and becomes a record, and no answer is lost."""

from __future__ import annotations

import json
import logging

import pytest
from helpers import ERROR, keys, read_jsonl, samples
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate, consolidate_partial
from video_pipeline.run.run import Run
from video_pipeline.samples.windows import windows


def scored(count: int) -> list[dict]:
    """Samples whose field ``score`` is their number."""
    return [{**sample, "score": sample["id"]} for sample in samples(count)]


def where(splitting, condition: str | None, **data) -> None:
    splitting.run.configure(data={"where": condition, **data})


def finish_all(splitting) -> list[dict]:
    """Answer what is pending, and consolidate; returns the output."""
    config, layout = splitting.run.config, splitting.layout
    splitting.finish(*splitting.pending)
    for rank in range(layout.num_shards):
        infer(config, layout, rank, 1)
    consolidate(config, layout)
    return splitting.run.records()


def test_what_is_dropped_is_a_record_in_its_place(splitting, caplog):
    where(splitting, "score >= 3 or score == 1")
    caplog.set_level(logging.INFO, "video_pipeline.split.split")
    splitting(scored(6), 2)
    assert splitting.order == keys(6)
    assert sorted(splitting.pending) == ["1", "3", "4", "5"]
    assert (splitting.manifest.samples, splitting.manifest.dropped) == (4, 2)
    assert "data.where drops 2 of 6 lines, 0 of them because a field" in caplog.text
    consolidate_partial(splitting.run.config, splitting.layout)
    assert [r["__key"] for r in read_jsonl(splitting.layout.partial)] == ["0", "2"]
    records = finish_all(splitting)
    assert [record["__key"] for record in records] == keys(6)
    assert [record["__status"] for record in records] == [
        *("left_out", "ok", "left_out", "ok", "ok", "ok")
    ]
    assert records[2] == {
        "__key": "2",
        "__status": "left_out",
        "__left_out": {"by": "where", "message": "data.where does not hold"},
        "__task": "ask",
        "__model": "simulated",
        "input": scored(3)[2],
    }
    counts = splitting.run.summary()["samples"]
    assert {name: counts[name] for name in ("distinct", "ok", "error", "dropped", "left_out")} == {
        **{"distinct": 4, "ok": 4, "error": 0},
        **{"dropped": 2, "left_out": 0},
    }


def test_another_condition_infers_nothing_again(splitting):
    where(splitting, "score < 4")
    splitting(scored(6), 2)
    finish_all(splitting)
    journal = splitting.manifest.journal
    where(splitting, "score < 2")
    assert splitting(num_shards=2).pending == []
    assert [r["__status"] for r in finish_all(splitting)] == ["ok"] * 2 + ["left_out"] * 4
    where(splitting, None)
    assert splitting(num_shards=2).pending == ["4", "5"]
    assert [r["__status"] for r in finish_all(splitting)] == ["ok"] * 6
    assert splitting.manifest.journal == journal
    assert set(splitting.run.answers().values()) == {1}


def test_a_condition_is_no_setting_that_changes_answers(splitting):
    splitting(scored(1), 1)
    before = Run(splitting.run.config, splitting.layout).settings
    where(splitting, "score > 1")
    assert Run(splitting.run.config, splitting.layout).settings == before


def test_chunks_of_another_condition_are_refused(splitting):
    where(splitting, "score < 4")
    splitting(scored(6), 1)
    where(splitting, "score < 3")
    with pytest.raises(UserError, match=r"settings have changed .*data\.where"):
        infer(splitting.run.config, splitting.layout, 0, 1)


def test_records_that_are_left_out_are_those_of_the_split(splitting):
    where(splitting, "score < 4")
    splitting(scored(6), 1)
    finish_all(splitting)
    path = splitting.layout.left_out
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"left_out\.jsonl: not what split wrote there"):
        consolidate(splitting.run.config, splitting.layout)


def test_a_missing_field_drops_a_sample_and_is_counted(splitting):
    entries = scored(4)
    del entries[1]["score"]
    entries[2]["score"] = None
    where(splitting, "score != 3")
    splitting(entries, 1)
    assert (splitting.manifest.dropped, splitting.manifest.unknown) == (3, 2)
    assert splitting.pending == ["0"]
    messages = [record["__left_out"]["message"] for record in splitting.left_out]
    assert ["missing or null" in message for message in messages] == [True, True, False]


def test_a_field_that_no_sample_has_is_a_mistake(splitting):
    entries = scored(20)
    where(splitting, "score >= 0 and scorre > 3")
    with pytest.raises(UserError) as caught:
        splitting(entries, 1)
    assert "column 16: no sample has a field 'scorre'; did you mean 'score'?" in str(caught.value)
    assert "`scorre is not null and ...`" in str(caught.value)
    where(splitting, "score >= 17 and (scorre is null or scorre > 3)")
    assert splitting(entries, 1).pending == ["17", "18", "19"]


def test_a_field_that_one_sample_has_is_none(splitting):
    """In an input of several blocks, which other processes scan."""
    entries = [{**sample, "caption": "x" * 3000} for sample in scored(200)]
    entries[150]["rare"] = 5
    where(splitting, "rare > 3")
    assert splitting(entries, 1, num_processes=2).pending == ["150"]


def test_a_value_that_does_not_fit_is_a_bad_line(splitting):
    entries = scored(3)
    entries[1]["score"] = "high"
    where(splitting, "id >= 0 and score > 1")
    with pytest.raises(UserError) as caught:
        splitting(entries, 1)
    assert "line 2: data.where: column 13: `score > 1`: '>' not supported" in str(caught.value)


def test_repeated_lines_that_are_dropped_are_one_record(splitting):
    where(splitting, "score > 0")
    splitting([*scored(2), *scored(2)], 2)
    assert splitting.order == ["0", "1"]
    assert (splitting.manifest.duplicates, splitting.manifest.left_out_records) == (2, 1)


def test_all_may_be_dropped(splitting, caplog):
    where(splitting, "score > 9")
    splitting(scored(2), 2)
    assert "holds no samples to ask about (2 lines, 0 of them failed" in caplog.text
    assert [record["__status"] for record in finish_all(splitting)] == ["left_out"] * 2


# --- the output of one stage is the input of the next --------------------------------------------


def record(key: str, raw: dict, **fields) -> dict:
    return {"__key": key, "__status": "ok", "input": raw, **fields}


def failed(key: str, raw: dict) -> dict:
    return {"__key": key, "__status": "error", "__error": ERROR, "input": raw}


def test_a_sample_keeps_its_key_from_record_to_record(splitting):
    """Without ids, too; and what failed or was left out before is a record again."""
    where(splitting, "previous.is_safe", id_field=None)
    raws = [{"path": f"{n}.mp4"} for n in range(4)]
    earlier = [
        record("a", raws[0], is_safe=True),
        failed("b", raws[1]),
        record("c", raws[2], is_safe=False),
        {"__key": "d", "__status": "left_out", "__left_out": {"by": "where"}, "input": raws[3]},
    ]
    splitting(earlier, 1)
    assert splitting.order == ["a", "b", "c", "d"]
    assert splitting.pending == ["a"]
    counts = splitting.manifest.counts
    assert (counts["left_out"], counts["dropped"]) == (2, 1)
    why = [record["__left_out"] for record in splitting.left_out]
    assert why == [
        {"by": "error", "message": "read: ValueError: no such clip"},
        {"by": "where", "message": "data.where does not hold"},
        {"by": "where"},
    ]
    assert splitting.left_out[0]["input"]["previous"]["__error"] == ERROR

    first = finish_all(splitting)
    splitting.run.configure(
        data={"input_jsonl": "results/out.jsonl", "output_jsonl": "next/out.jsonl", "where": None}
    )
    splitting(num_shards=1)
    assert splitting.order == [record["__key"] for record in first] == ["a", "b", "c", "d"]
    assert [record["__left_out"] for record in splitting.left_out] == why


def test_a_record_without_an_answer_gives_way_to_one_with(splitting):
    """Outputs that were put one after the other."""
    (raw,) = samples(1)
    for lines in (
        [failed("0", raw), record("0", raw)],
        [record("0", raw), failed("0", raw)],
    ):
        splitting(lines, 1)
        assert (splitting.pending, splitting.left_out) == (["0"], [])
        assert splitting.order == ["0"]


def test_two_answers_for_one_key_are_a_mistake(splitting):
    splitting.run.configure(data={"id_field": None})
    raw = {"path": "a.mp4"}
    with pytest.raises(UserError, match="line 2: id 'k' stands on line 1 with other content"):
        splitting([record("k", raw, a=1), record("k", raw, a=2)], 1)
    splitting([record("k", raw, a=1), record("k", raw, a=1)], 1)
    assert splitting.order == ["k"]


def test_only_dropped_samples_are_not_run_as_failed_ones(splitting):
    """A file of failed samples alone is: then these are the samples."""
    where = {"__key": "0", "__status": "left_out", "__left_out": {"by": "where", "message": ""}}
    left_out = {**where, "input": samples(1)[0]}
    assert splitting([left_out], 1).pending == []
    assert splitting([left_out, failed("1", samples(2)[1])], 1).pending == []
    assert splitting([failed("1", samples(2)[1])], 1).pending == ["1"]


# --- reduce --------------------------------------------------------------------------------------


def of_windows(number: int, *edges: float, **fields) -> list[dict]:
    """The records of the windows of a sample."""
    raw = samples(number + 1)[number]
    return [
        record(f"{number}@{w['video_start']}-{w['video_end']}", w, text=f"{number}:{n}", **fields)
        for n, w in enumerate(windows(raw, list(edges)))
    ]


@pytest.fixture
def grouping(splitting):
    splitting.run.configure(data={"group_by": "video"})
    return splitting


@pytest.mark.parametrize("id_field", ["id", None])
def test_the_windows_of_a_video_become_one_sample(grouping, id_field):
    grouping.run.configure(data={"id_field": id_field})
    lines = [*of_windows(0, 0.0, 4.0, 9.5), *of_windows(1, 2.0, 3.0), *of_windows(2, 0.0, 1.0)]
    grouping(lines, 1)
    assert grouping.order == ["0", "1", "2"]
    raws = [entry.raw for entry in grouping.chunks[0]]
    assert [{n: v for n, v in raw.items() if n != "previous"} for raw in raws] == samples(3)
    clips = raws[0]["previous"]["clips"]
    assert [(c["video_start"], c["video_end"], c["text"]) for c in clips] == [
        (0.0, 4.0, "0:0"),
        (4.0, 9.5, "0:1"),
    ]
    assert [record["__key"] for record in finish_all(grouping)] == ["0", "1", "2"]


def test_a_group_of_windows_with_hashes_for_keys_has_that_of_the_video(grouping):
    """As in a run over the same input that cut nothing, or signed its addresses again."""
    grouping.run.configure(data={"id_field": None})
    lines = of_windows(0, 0.0, 4.0, 9.5)
    for number, line in enumerate(lines):
        line["__key"] = f"hash {number}"
        line["input"]["path"] = "https://h/a.mp4?Expires=1&Signature=2"
    (key,) = grouping(lines, 1).order
    grouping.run.configure(data={"group_by": None})
    for path in ("https://h/a.mp4?Expires=1&Signature=2", "https://h/a.mp4?Expires=3&Signature=4"):
        assert grouping([{**samples(1)[0], "path": path}], 1).order == [key]


def test_the_condition_drops_windows_before_they_are_grouped(grouping):
    where(grouping, "previous.is_safe")
    lines = [*of_windows(0, 0.0, 1.0, 2.0, 3.0, is_safe=True), *of_windows(1, 0.0, 1.0, 2.0)]
    lines[1]["is_safe"] = False
    for line in lines[3:]:
        line["is_safe"] = False
    grouping(lines, 1)
    assert grouping.pending == ["0"]
    assert [c["video_start"] for c in grouping.chunks[0][0].raw["previous"]["clips"]] == [0.0, 2.0]
    assert [(r["__key"], r["__left_out"]["by"]) for r in grouping.left_out] == [("1", "where")]
    assert (grouping.manifest.dropped, grouping.manifest.samples) == (3, 1)


def test_a_video_with_a_window_that_failed_is_left_out(grouping):
    lines = [*of_windows(0, 0.0, 1.0, 2.0), *of_windows(1, 0.0, 1.0)]
    lines[1] = failed(lines[1]["__key"], lines[1]["input"])
    grouping(lines, 1)
    assert grouping.order == ["0", "1"]
    assert grouping.pending == ["1"]
    (left_out,) = grouping.left_out
    assert left_out["__left_out"] == {
        "by": "error",
        "message": "1 of 2 windows: read: ValueError: no such clip",
    }
    assert len(left_out["input"]["previous"]["clips"]) == 1


@pytest.mark.parametrize("order", [[0, 2], [1, 2], [0, 1], [0, 2, 1], [2, 1, 0]])
def test_windows_that_are_not_all_there_in_order_are_a_bad_line(grouping, order):
    lines = of_windows(0, 0.0, 1.0, 2.0, 3.0)
    with pytest.raises(UserError, match="of the 3 windows of this video follow each other"):
        grouping([lines[number] for number in order], 1)


def test_a_video_that_was_not_cut_is_a_group_of_one(grouping):
    grouping([record("0", samples(1)[0], text="whole")], 1)
    (entry,) = grouping.chunks[0]
    assert entry.raw["previous"]["clips"] == [
        {"video_start": None, "video_end": None, "text": "whole", "__key": "0", "__status": "ok"}
    ]


def test_what_was_said_before_the_video_was_cut_stays(grouping):
    lines = of_windows(0, 0.0, 1.0, 2.0)
    for line in lines:
        line["input"]["previous"] = {"title": "A cat"}
    grouping(lines, 1)
    (entry,) = grouping.chunks[0]
    assert entry.raw["previous"]["previous"] == {"title": "A cat"}
    assert entry.raw["previous"]["clips"][1]["text"] == "0:1"


@pytest.mark.parametrize("num_processes", [1, 2])
def test_groups_may_be_larger_than_a_block(grouping, num_processes):
    lines = []
    for number, count in enumerate([1, 300, 2, 150, 7]):
        edges = list(map(float, range(count + 1)))
        lines += of_windows(number, *edges, caption="x" * 2000)
    path = grouping.run.folder / "samples.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n\n" for line in lines))
    grouping(num_shards=1, num_processes=num_processes)
    assert grouping.order == keys(5)
    counts = [len(entry.raw["previous"]["clips"]) for entry in grouping.chunks[0]]
    assert counts == [1, 300, 2, 150, 7]


def test_windows_that_would_be_cut_again_are_refused(grouping):
    grouping.run.configure(run={"dataset": "clips"}, task_params={"clip_seconds": 2})
    with pytest.raises(UserError, match=r"data\.group_by: dataset 'clips' would cut the videos"):
        grouping(of_windows(0, 0.0, 1.0), 1)
