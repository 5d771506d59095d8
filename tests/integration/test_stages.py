"""Stages: one run goes on where the one before ends."""

from __future__ import annotations

import re

import pytest
from helpers import EXPAND, Run, read_jsonl, samples
from video_pipeline.errors import UserError


@pytest.fixture
def staged(run: Run) -> Run:
    """Two stages with the simulated engine; the second reads what the first said."""
    run.configure(data={"output_jsonl": "results/out.jsonl"}, run={"max_error_rate": 1.0})
    run.settings["stages"] = [
        {"name": "ask"},
        {
            "name": "prose",
            "data": {"num_shards": 1},
            "run": {"task": "rewrite"},
            # less than a video needs: this stage reads none
            "vllm": {"max_model_len": 4096},
            "task_params": {"prompt": "Rewrite {{ id }}: {{ previous.answer }}"},
        },
    ]
    run.configure()
    return run


@pytest.mark.two_ranks
def test_a_second_stage_works_on_what_the_first_said(staged):
    entries = samples(6)
    entries[2]["do"] = "raise"
    staged.write_samples(entries)
    staged.snakemake()
    first = read_jsonl(staged.folder / "results" / "out.ask.jsonl")
    assert [record["__status"] for record in first] == ["ok", "ok", "error", "ok", "ok", "ok"]
    records = staged.records()
    # the outputs join: what failed is a record again
    assert [record["__key"] for record in records] == [record["__key"] for record in first]
    (left_out,) = (record for record in records if record["__status"] == "left_out")
    assert left_out["__left_out"] == {"by": "error", "message": "read: ValueError: no such clip"}
    assert left_out["input"]["previous"]["__error"] == first[2]["__error"]
    records.remove(left_out)
    assert all(record["__task"] == "rewrite" and record["text"] for record in records)
    assert records[0]["input"]["previous"]["answer"] == first[0]["answer"]
    assert staged.summary()["samples"]["left_out"] == 1
    assert "Nothing to be done" in staged.snakemake()
    for stem, link in (("out.ask", "out.report.html"), ("out", "out.ask.report.html")):
        page = (staged.folder / "results" / f"{stem}.report.html").read_text()
        assert re.findall('<a href="([^#"]+)"', page) == [link]

    # an edited prompt of the second stage infers nothing of the first again
    before = staged.reads()
    staged.settings["stages"][1]["task_params"]["prompt"] = "Judge {{ id }}: {{ previous.answer }}"
    staged.configure()
    staged.snakemake()
    assert staged.reads() == before
    assert [record["__status"] for record in staged.records()].count("ok") == 5

    # the journals of all stages are in use
    used = staged.journals()
    assert "0.0 MB are gone" in staged.module("journal", "prune", "--yes")
    assert staged.journals() == used


def test_windows_are_chosen_and_become_one_sample_again(staged):
    """Three samples in six windows; the stage after that asks about the videos."""
    staged.edit_plugin("class Plain(BaseDataset):\n", EXPAND)
    staged.write_samples(samples(3))
    ask, prose = staged.settings["stages"]
    ask["data"] = {"where": "id > 0"}
    prose["data"] |= {"group_by": "video", "where": "previous.answer != '' and video_end > 1"}
    prose["task_params"]["prompt"] = (
        "{% for clip in previous.clips %}{{ clip.video_start }}: {{ clip.answer }}\n{% endfor %}"
    )
    staged.configure()
    assert "data.where drops 1 of 3 lines" in staged.snakemake()
    windows = read_jsonl(staged.folder / "results" / "out.ask.jsonl")
    times = [f"{number}@{edges}" for number in (1, 2) for edges in ("0.0-1.0", "1.0-2.5")]
    assert [record["__key"] for record in windows] == ["0", *times]
    records = staged.records()
    assert [(record["__key"], record["__status"]) for record in records] == [
        *(("0", "left_out"), ("1", "ok"), ("2", "ok"))
    ]
    clips = records[1]["input"]["previous"]["clips"]
    assert [(clip["video_start"], clip["answer"]) for clip in clips] == [
        (1.0, windows[2]["answer"])
    ]
    assert staged.summary()["samples"]["dropped"] == 2

    # another condition asks about what it adds, and loses nothing
    reads, answers = staged.reads(), staged.answers()
    ask["data"]["where"] = "id > 1"
    staged.configure()
    staged.snakemake()
    assert (staged.reads(), staged.answers()) == (reads, answers)
    assert [record["__status"] for record in staged.records()] == ["left_out"] * 2 + ["ok"]


def test_retry_reaches_every_stage(staged):
    entries = samples(4, do="storage")
    del entries[0]["do"]
    staged.write_samples(entries)
    staged.snakemake()
    assert [record["__status"] for record in staged.records()] == ["ok", *["left_out"] * 3]
    (staged.folder / "storage").touch()
    assert "3 failed sample(s) are open again" in staged.module("retry")
    staged.snakemake()
    assert [record["__status"] for record in staged.records()] == ["ok"] * 4


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"run": {}}], "stages[0].name: got None"),
        ([{"name": "a"}, {"name": "a"}], "stages[1].name: got 'a'"),
        ([{"name": "a", "run": {"tsak": "x"}}], "stage a: configuration:\n  run.tsak: unknown key"),
        ([{"name": "a", "data": None}, {"name": "b"}], "stage a: configuration:\n  data: "),
        (
            [
                {"name": "a", "data": {"output_jsonl": "results/out.jsonl"}},
                {"name": "b", "data": {"input_jsonl": "samples.jsonl"}},
            ],
            "stages: a and b write the same file, results/out.jsonl",
        ),
        (
            [{"name": name} for name in ("videos", "b", "c")],
            "stages: videos and c write the same file, results/out.videos.jsonl",
        ),
        ([{"name": "errors"}, {"name": "b"}], "data.input_jsonl: 'results/out.errors.jsonl' is a"),
        (
            [{"name": "a", "data": {"input_jsonl": "results/out.errors.jsonl"}}, {"name": "b"}],
            "stages: b replaces results/out.errors.jsonl, the input of a",
        ),
    ],
)
def test_stages_that_cannot_be(run, stages, message):
    run.settings["stages"] = stages
    run.configure()
    with pytest.raises(UserError, match=re.escape(message)):
        run.config.by_stage()


def test_a_prompt_that_asks_for_what_is_not_there_is_named(staged):
    """Its stage does not begin; a retry reaches those that did."""
    entries = samples(2)
    entries[1]["do"] = "raise"
    staged.write_samples(entries)
    staged.settings["stages"][1]["task_params"]["prompt"] = "{{ previous.no_such_field }}"
    staged.configure()
    printed = staged.snakemake(succeeds=False)
    assert "has no attribute 'no_such_field'" in printed
    assert "out.ask.jsonl, line 1" in printed
    assert "1 failed sample(s) are open again" in staged.module("retry")


def test_a_mistake_in_the_second_stage_stops_the_first(staged):
    staged.write_samples(samples(2))
    staged.settings["stages"][1]["run"]["dataset"] = "txet"
    staged.configure()
    printed = staged.snakemake("--until", "split_ask", succeeds=False)
    assert "the stage that writes results/out.jsonl: no dataset is called 'txet'" in printed
    assert "did you mean 'text'?" in printed
    staged.settings["stages"][1]["data"]["where"] = "previous.answer && id > 1"
    staged.configure()
    printed = staged.snakemake("--until", "split_ask", succeeds=False)
    assert "stage prose: configuration:\n  data.where: column 18: invalid syntax" in printed
