"""Answers that need a look, because they were cut off or their video is damaged, from the engine to
whoever looks at the run."""

from __future__ import annotations

import io
import logging
from dataclasses import replace

import pytest
from helpers import Splitter, read_jsonl, samples
from rich.console import Console
from video_pipeline.commands.retry import retry
from video_pipeline.commands.watch import lines, look
from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.errors import UserError
from video_pipeline.infer import asking
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.report.summary import summary_table
from video_pipeline.run.answers import describe_cut_off
from video_pipeline.run.sharding import Sharding
from video_pipeline.run.stages import Stage
from video_pipeline.tasks.registry import load_task
from video_pipeline.workflow.progress_lines import num_to_retry

pytestmark = pytest.mark.slow

ONLY_PART = "0"
"""The sample whose answer always comes to its end: a run without any answer fails."""

NOTES_DAMAGE = """
    if do == "damage":
        from video_pipeline.video.errors import note_damage

        note_damage("a packet is lost")
"""


@pytest.fixture
def engine_says(monkeypatch):
    """Lets the simulated engine end its answers in another way, all but one."""
    real = SimulatedEngine.generate

    def say(**changed):
        async def generate(self, name, *args, **kwargs):
            how = {"finish_reason": "stop"} if name == ONLY_PART else changed
            return replace(await real(self, name, *args, **kwargs), **how)

        monkeypatch.setattr(SimulatedEngine, "generate", generate)

    return say


@pytest.fixture
def short(splitting: Splitter, engine_says) -> Splitter:
    """A run whose answers, of 16 words, have room for 4: six of them are cut off."""
    engine_says()
    splitting.run.configure(sampling={"max_tokens": 4}, run={"max_error_rate": 1.0})
    splitting(samples(7), 1)
    Sharding(1).write(splitting.layout.sharding)
    return splitting


def finish(short: Splitter, **run) -> list[dict]:
    """Run it, as far as it is not done, with these keys of the section ``run``."""
    short.run.configure(run=run)
    short(num_shards=1)
    infer(short.run.config, short.layout, 0, threads=2)
    consolidate(short.run.config, short.layout)
    return short.run.records()


def as_text(table) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, force_terminal=False).print(table)
    return stream.getvalue()


def test_nobody_can_overlook_that_answers_were_cut_off(short, caplog):
    caplog.set_level(logging.INFO)
    infer(short.run.config, short.layout, 0, threads=2)
    words = "6 answers were cut off: raise sampling.max_tokens"
    assert f"  {words}" in lines("", look(short.run.config))
    assert f"rank 0: {words}" in caplog.messages
    consolidate(short.run.config, short.layout)
    counted = short.run.summary()["samples"]
    assert (counted["ok"], counted["truncated"]) == (7, 6)
    assert counted["truncated_at"] == {"sampling.max_tokens": 6}
    assert f"results/out.jsonl: {words}" in caplog.messages
    table = as_text(summary_table(short.layout.summary))
    assert "cut off: raise sampling.max_tokens │ 6" in " ".join(table.split())
    assert "damaged" not in table
    styles = {
        str(cell.style)
        for cell in summary_table(short.layout.summary).columns[1]._cells
        if getattr(cell, "plain", "") == "6"
    }
    assert styles == {"not dim yellow"}


def test_a_running_job_counts_them(short):
    """Before its rank file is there, watch knows them from what the job spends."""
    infer(short.run.config, short.layout, 0, threads=2)
    short.layout.rank_file(0).unlink()
    assert look(short.run.config).ranks[0].truncated == {"sampling.max_tokens": 6}


def test_what_becomes_of_them_is_a_view_of_the_journal(short):
    kept = finish(short)
    assert {record["__status"] for record in kept} == {"ok"}
    failed = finish(short, truncated="error")
    assert failed[0] == kept[0]
    assert {record["__error"]["stage"] for record in failed[1:]} == {"length"}
    assert [r["output_text"] for r in failed] == [r["output_text"] for r in kept]
    counted = short.run.summary()["samples"]
    assert (counted["ok"], counted["error"], counted["truncated"]) == (1, 6, 6)
    assert counted["errors_by_stage"] == {"length": 6}
    assert len(read_jsonl(short.layout.errors)) == 6
    # asked again they would be cut off again
    assert "raise sampling.max_tokens" in short.run.module("retry")
    assert finish(short, truncated="keep") == kept
    assert short.run.module("retry").splitlines() == ["no failed samples to retry"]
    assert read_jsonl(short.layout.errors) == []
    assert set(short.run.answers().values()) == {1}


def test_free_text_that_was_cut_off_is_not_said_to_be_retried(short):
    """The journal has it as an answer, so `retry` finds no error, even if it may be longer."""
    (failed,) = {finish(short, truncated="error", retry_truncated=9)[1]["__error"]["stage"]}
    assert failed == "length"
    assert count_to_retry(short) == 0
    nothing, note = short.run.module("retry").splitlines()
    assert nothing == "no failed samples to retry"
    assert note.startswith("6 answer(s) were cut off (stage length) and would be again: ")
    assert "another data.output_jsonl" in note
    assert short.run.module("retry", "--stage", "read").splitlines() == [nothing]


def test_if_all_free_text_was_cut_off_no_retry_is_named(short):
    short(samples(7)[1:], 1)
    with pytest.raises(UserError, match=r"none of the 6 .*\(length: 6\).* Fix the cause and run"):
        finish(short, truncated="error", retry_truncated=9)


def test_answers_with_a_schema_that_were_cut_off_are_retried(short, monkeypatch):
    """Their errors are in the journal. The one that counts is JSON."""
    real = SimulatedEngine.generate

    async def generate(self, name, *args, **kwargs):
        answer = await real(self, name, *args, **kwargs)
        return replace(answer, output_text='"Yes."') if name == ONLY_PART else answer

    monkeypatch.setattr(SimulatedEngine, "generate", generate)
    task = load_task(short.run.config)
    monkeypatch.setattr(type(task), "output_schema", {"type": "string"})
    finish(short, retry_truncated=9)
    assert short.run.summary()["samples"]["errors_by_stage"] == {"length": 6}
    assert count_to_retry(short) == retry(short.run.config) == 6


def count_to_retry(short: Splitter) -> int:
    """How many samples Snakemake says that `retry` opens."""
    return num_to_retry(Stage("", short.run.config, Sharding(1), short.layout))


def test_a_larger_model_len_alone_infers_nothing_again():
    alone, both = {"vllm.max_model_len": 2}, {"vllm.max_model_len": 2, "sampling.max_tokens": 1}
    how = "; docs/report.md says how to infer these again"
    assert describe_cut_off(alone) == f"2 answers were cut off: raise vllm.max_model_len{how}"
    keys = "sampling.max_tokens and vllm.max_model_len"
    assert describe_cut_off(both) == f"3 answers were cut off: raise {keys}{how}"


def test_too_many_of_them_fail_the_run(short):
    """At once; and again from what is in the journal, with nothing more inferred."""
    short.run.configure(run={"max_error_rate": 0.1, "truncated": "error", "max_in_flight": 1})
    short(samples(200), 1)
    with pytest.raises(UserError, match=r"more than run\.max_error_rate.*length: Truncated"):
        infer(short.run.config, short.layout, 0, threads=2)
    answered = short.run.answers()
    assert 20 <= len(answered) < 200
    with pytest.raises(UserError, match=r"more than run\.max_error_rate"):
        infer(short.run.config, short.layout, 0, threads=2)
    assert short.run.answers() == answered
    assert not short.layout.rank_file(0).exists()
    records = finish(short, truncated="keep")
    assert {record["__status"] for record in records} == {"ok"}
    assert set(short.run.answers().values()) == {1}


def test_too_many_of_them_fail_a_run_that_is_done(short):
    short(samples(30), 1)
    finish(short)
    with pytest.raises(UserError, match=r"rank 0: 29 of the 30 .*more than run\.max_error_rate"):
        finish(short, truncated="error", max_error_rate=0.1)
    assert set(short.run.answers().values()) == {1}


@pytest.mark.parametrize("reason", ["error", "repetition", "unknown"])
def test_an_answer_that_the_engine_ended_can_be_asked_for_again(splitting, engine_says, reason):
    engine_says(finish_reason=reason)
    splitting(samples(3), 1)
    Sharding(1).write(splitting.layout.sharding)
    records = finish(splitting)
    assert [record["__status"] for record in records] == ["ok", "error", "error"]
    assert {record["__error"]["stage"] for record in records[1:]} == {"generate"}
    assert all(record["output_text"] for record in records)
    assert retry(splitting.run.config, ("generate",)) == 2
    engine_says(finish_reason="stop")
    assert {record["__status"] for record in finish(splitting)} == {"ok"}


def test_thoughts_without_an_answer_are_an_error(short, engine_says):
    engine_says(output_text="", reasoning="Let me see")
    _, *records = finish(short)
    assert {record["__error"]["stage"] for record in records} == {"length"}
    assert {record["__reasoning"] for record in records} == {"Let me see"}
    assert short.run.summary()["samples"]["truncated"] == 6


@pytest.mark.parametrize("is_old", [False, True])
def test_thoughts_that_ended_without_an_answer_are_an_error(
    splitting, engine_says, monkeypatch, is_old
):
    """In the journal of an older version they are an answer. It is judged anew."""
    if is_old:
        monkeypatch.setattr(asking, "why_no_answer", lambda *_, **__: None)
    engine_says(output_text="", reasoning="I see a")
    splitting(samples(3), 1)
    Sharding(1).write(splitting.layout.sharding)
    for _ in range(2):  # The second time the journal has them.
        records = finish(splitting)
        assert [record["__status"] for record in records] == ["ok", "error", "error"]
        assert {record["__error"]["stage"] for record in records[1:]} == {"generate"}
        assert {record["__reasoning"] for record in records[1:]} == {"I see a"}
    assert splitting.run.reads() == {"0": 1, "1": 1, "2": 1}


def test_counts_of_several_questions_are_counts_of_samples(splitting):
    run, names = splitting.run, 'for n in ("what", "who")}'
    run.edit_plugin("return [{", "return {n: [{")
    run.edit_plugin(""".get('hint', '')}"}]""", """.get('hint', '')}"}] """ + names)
    run.edit_plugin('"llm_input": {', '"llm_inputs": {n: {')
    run.edit_plugin('"multi_modal_data": {}},', '"multi_modal_data": {}} ' + names + ",")
    run.configure(sampling={"max_tokens": 4})
    splitting(samples(6), 1)
    finish(splitting)
    assert run.summary()["samples"]["truncated"] == 6
    (attempt,) = run.summary()["jobs"]
    assert attempt["truncated"] == {"sampling.max_tokens": 6}
    assert set(run.answers().values()) == {2}


def test_answers_about_damaged_videos_are_counted(splitting, caplog):
    """Neither a failed one counts, nor a field that the task has given that name."""
    splitting.run.edit_plugin("def misbehave(do):", f"def misbehave(do):\n{NOTES_DAMAGE}")
    fails = "if sample['id'] == 0:\n            raise ValueError\n        "
    returns = "if sample['id'] == 1:\n            return {'damaged': True}\n        "
    splitting.run.edit_plugin('return {"answer"', f'{fails}{returns}return {{"answer"')
    damaged, whole = samples(4, do="damage"), {"id": 4, "path": "4.mp4"}
    splitting([*damaged, whole], 1)
    Sharding(1).write(splitting.layout.sharding)
    records = finish(splitting)
    assert [record.get("damaged") for record in records] == [True] * 4 + [None]
    assert splitting.run.summary()["samples"]["damaged"] == 2
    words = "2 answers are about the part of a damaged video that could be read"
    assert f"results/out.jsonl: {words}" in caplog.messages
    table = as_text(summary_table(splitting.layout.summary))
    assert "damaged: only a part could be read │ 2" in " ".join(table.split())
