"""Several questions about a sample: one reading, one record, and resume by question."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers import Run, Splitter, read_jsonl, samples
from video_pipeline.commands.retry import retry
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding

# Counts what is read; the sample's `fails` names a question that the engine refuses.
PLUGIN = """\
from pathlib import Path

from video_pipeline.data.base import item
from video_pipeline.data.registry import register_dataset
from video_pipeline.data.text import TextDataset

HERE = Path(__file__).parent


@register_dataset("counted")
class Counted(TextDataset):
    def llm_input(self, messages):  # the video of the messages is not looked at
        return self.prompter.llm_input(messages)

    def __getitem__(self, i):
        sample = self.samples[i]
        with open(HERE / "reads.txt", "a") as stream:
            stream.write(sample["__key"] + "\\n")
        found = super().__getitem__(i)
        for part in sample.get("fails", []):
            if not (HERE / "mended").exists():
                del found["llm_inputs"][part]["prompt"]
        return found
"""


@pytest.fixture
def asking(splitting: Splitter) -> Run:
    run = splitting.run
    run.write_plugin(PLUGIN)
    run.configure(
        run={"task": "questions", "dataset": "counted"},
        task_params={"questions": {"what": "What is it?", "who": "Who is it?"}},
    )
    run.all = splitting.run_all
    return run


def reopen(run: Run, *stages: str) -> int:
    """Open failed samples again; returns how many."""
    Sharding(1).write(Layout.of(run.config, 1).sharding)
    return retry(run.config, *([stages] if stages else []))


def asked(run: Run) -> Counter[tuple[str, str]]:
    """How often each question about each sample was answered, by all journals."""
    return Counter(
        (record["__key"], record["__part"])
        for path in (run.folder / "results" / ".journal" / "out").rglob("attempt.*.jsonl")
        for record in read_jsonl(path)
        if "output_text" in record
    )


def test_a_new_question_is_asked_alone(asking):
    asking.write_samples(samples(4))
    asking.all()
    assert [sorted(record["output_text"]) for record in asking.records()] == [["what", "who"]] * 4
    assert asking.reads() == Counter({str(number): 1 for number in range(4)})
    first = asking.records()

    asking.configure(task_params={"questions": {"what": "What is it?", "where": "Where is it?"}})
    asking.all()
    expected = Counter({(str(n), part): 1 for n in range(4) for part in ("what", "who", "where")})
    assert asked(asking) == expected
    for record, before in zip(asking.records(), first, strict=True):
        assert record["what"] == before["what"]
        assert record["where"]["answer"] == record["output_text"]["where"]
        assert "who" not in record

    # all three answers are in the journal: nothing is read or asked again
    reads = asking.reads()
    asking.configure(task_params={"questions": {"who": "Who is it?", "where": "Where is it?"}})
    asking.all()
    assert asked(asking) == expected
    assert asking.reads() == reads
    assert asking.records()[0]["who"] == first[0]["who"]


def test_one_question_that_fails_is_retried_alone(asking):
    asking.configure(run={"max_error_rate": 1.0})
    entries = samples(3)
    entries[1]["fails"] = ["who"]
    asking.write_samples(entries)
    asking.all()
    failed = asking.records()[1]
    assert failed["__status"] == "error"
    (asking.folder / "mended").touch()
    assert reopen(asking) == 1
    asking.all()
    record = asking.records()[1]
    assert record["__status"] == "ok"
    assert set(asked(asking).values()) == {1}


SCHEMA = """
from video_pipeline.tasks.questions import Questions
from video_pipeline.tasks.registry import register_task

@register_task
class Strict(Questions):
    name = "strict"

    def schema(self, part):
        return {"type": "string"} if part == "who" else None
"""


def test_an_answer_with_a_schema_that_does_not_end_is_asked_for_once_more(asking):
    asking.write_plugin(PLUGIN + SCHEMA)
    asking.configure(
        run={"task": "strict", "max_error_rate": 1.0, "simulated": {"output_tokens": 9}},
        sampling={"max_tokens": 4},
    )
    asking.write_samples(samples(1))
    with pytest.raises(UserError, match=r"none of the 1 samples .* Fix the cause and run"):
        asking.all()
    (record,) = read_jsonl(asking.folder / "results" / "out.rank0.jsonl")
    assert record["__error"]["stage"] == "length"
    assert record["__error"]["message"] == (
        "who: the answer did not end within 4 tokens (sampling.max_tokens); "
        "run.retry_truncated allows more at a second try"
    )
    assert len(record["output_text"]["who"].split()) == 4
    # free text may be cut off
    assert record["what"]["answer"] == record["output_text"]["what"]

    # more tokens: after `retry` only that question is asked again
    asking.configure(run={"retry_truncated": 6})
    assert reopen(asking, "length") == 1
    with pytest.raises(UserError, match="Fix the cause, then open them again"):
        asking.all()
    asking.configure(run={"retry_truncated": 12})
    assert reopen(asking, "length") == 1
    with pytest.raises(UserError, match="none of the 1 samples"):
        asking.all()
    (record,) = read_jsonl(asking.folder / "results" / "out.rank0.jsonl")
    assert len(record["output_text"]["who"].split()) == 9
    assert record["__error"]["stage"] == "parse"  # the simulated engine's words are no JSON
    assert asked(asking) == {("0", "what"): 1, ("0", "who"): 3}
