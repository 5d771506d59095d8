"""The plain loop, which is the specification of the streaming loop: both write the same journal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from helpers import Splitter, keys, read_jsonl, samples
from video_pipeline.engine.base import EngineDead
from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.infer.quarantine import QUARANTINE_DEATHS
from video_pipeline.journal.format import attempt_prefix

# Two questions, one of which has a schema; the sample's `do` names what goes wrong.
TWO_QUESTIONS = """

@register_dataset("two")
class Two(Plain):
    def __getitem__(self, i):
        item = super().__getitem__(i)
        sample, llm_input = self.samples[i], item.pop("llm_input")
        if sample.get("do") == "refused":
            return {**item, "llm_inputs": {"what": llm_input, "who": {"multi_modal_data": {}}}}
        return {**item, "llm_inputs": {"what": llm_input, "who": llm_input}}


@register_task
class Two(Ask):
    name = "two"
    dataset_name = "two"

    def build_messages(self, sample):
        messages = super().build_messages(sample)
        return {"what": messages, "who": messages}

    def schema(self, part):
        return {"type": "string"} if part == "who" else None

    def parse(self, generated_text, sample):
        if sample.get("do") == "parse":
            raise ValueError("no answer that I know")
        return super().parse(generated_text, sample)
"""

ODD = [
    *samples(4),
    {"id": "bad", "path": "bad.mp4", "do": "raise"},
    {"id": "silent", "path": "silent.mp4", "do": "silent"},
    {"id": "leaves", "path": "leaves.mp4", "do": "exit"},
    {"id": "refused", "path": "refused.mp4", "do": "refused"},
    {"id": "unparsed", "path": "unparsed.mp4", "do": "parse"},
    {"id": "hidden", "path": "hidden.mp4", "do": "surrogate"},
]


@pytest.fixture
def odd(splitting: Splitter) -> Splitter:
    """A run with bad samples of all kinds, and two questions about each sample."""
    run = splitting.run
    run.write_plugin((run.folder / "plugin.py").read_text(encoding="utf-8") + TWO_QUESTIONS)
    run.configure(run={"task": "two", "max_error_rate": 1.0})
    return splitting


def stage(line: str) -> str:
    """``ok``, or the stage of the error, of a record."""
    return json.loads(line).get("__error", {}).get("stage", "ok")


def inferred(splitting: Splitter, *, plain: bool) -> tuple[Counter[str], list[str]]:
    """The records that one of the loops writes to an empty journal, in no order, and the lines of
    the rank file."""
    splitting(ODD, 1, run_id=f"plain {plain}")
    infer(splitting.run.config, splitting.layout, 0, threads=2, plain=plain)
    attempt = attempt_prefix(splitting.manifest.split_id, 0)
    (journal,) = Path(splitting.manifest.journal).glob(f"{attempt}*.jsonl")
    records = Counter(json.dumps(line) for line in read_jsonl(journal) if "__key" in line)
    return records, splitting.layout.rank_file(0).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("run_keys", "sampling", "stages"),
    [
        ({}, {"n": 2, "logprobs": 1}, {"read": 4, "generate": 1, "parse": 5}),
        # The answers with a schema are cut off, and the second try has room for them.
        ({"retry_truncated": 20}, {"max_tokens": 4}, {"read": 4, "generate": 1, "parse": 5}),
        ({"truncated": "error"}, {"max_tokens": 4}, {"read": 4, "length": 6}),
    ],
)
def test_both_loops_write_the_same_journal(odd, run_keys, sampling, stages):
    odd.run.configure(run=run_keys, sampling=sampling, task_params={"strict": True})
    streamed = inferred(odd, plain=False)
    assert inferred(odd, plain=True) == streamed
    assert Counter(map(stage, streamed[1])) == stages
    assert sum(streamed[0].values()) == 2 * len(ODD)


def test_the_plain_loop_infers_only_what_is_pending(splitting):
    splitting(samples(4), 1).finish("1", failed=("2",))
    infer(splitting.run.config, splitting.layout, 0, threads=2, plain=True)
    assert splitting.run.reads() == {"0": 1, "3": 1}


WORDS = """\
    def sampling(self, sample, part):
        return {"max_tokens": sample["words"]}

    def parse("""


def test_a_sample_whose_sampling_changes_is_inferred_again(splitting):
    splitting.run.edit_plugin("    def parse(", WORDS)
    for entries, pending in (
        (samples(2, words=3), ["0", "1"]),
        ([*samples(1, words=3), {"id": 1, "path": "1.mp4", "words": 5}], ["1"]),
    ):
        splitting(entries, 1)
        assert splitting.pending == pending
        infer(splitting.run.config, splitting.layout, 0, threads=2, plain=True)
    first, second = map(json.loads, splitting.layout.rank_file(0).read_text().splitlines())
    assert (len(first["answer"].split()), len(second["answer"].split())) == (3, 5)
    assert second["__usage"]["max_tokens"] == second["__usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("own_limit", "tokens", "setting"),
    [(12, 12, "max_tokens in the task's sampling"), (6, 8, "run.retry_truncated")],
)
def test_a_second_try_has_never_less_room_than_the_first(splitting, own_limit, tokens, setting):
    splitting.run.edit_plugin("    def parse(", f"    output_schema = {{}}\n\n{WORDS}")
    splitting.run.configure(
        run={"retry_truncated": 8, "max_error_rate": 1.0}, sampling={"max_tokens": 4}
    )
    splitting(samples(1, words=own_limit), 1)
    infer(splitting.run.config, splitting.layout, 0, threads=2, plain=True)
    record = json.loads(splitting.layout.rank_file(0).read_text())
    assert len(record["output_text"].split()) == tokens
    message = f"the answer did not end within {tokens} tokens ({setting})"
    assert record["__error"] == {"stage": "length", "type": "Truncated", "message": message}


def test_the_plain_loop_finds_the_sample_that_kills_the_engine(splitting, monkeypatch):
    alive = SimulatedEngine.generate

    async def generate(self, name, request, constraints):
        if name == "2":
            raise EngineDead("killed on purpose")
        return await alive(self, name, request, constraints)

    monkeypatch.setattr(SimulatedEngine, "generate", generate)
    splitting(samples(4), 1)
    for _ in range(QUARANTINE_DEATHS):
        with pytest.raises(EngineDead):
            infer(splitting.run.config, splitting.layout, 0, threads=2, plain=True)
    infer(splitting.run.config, splitting.layout, 0, threads=2, plain=True)
    lines = splitting.layout.rank_file(0).read_text(encoding="utf-8").splitlines()
    assert list(map(stage, lines)) == ["ok", "ok", "quarantine", "ok"]
    assert splitting.run.answers() == {"0": 1, "1": 1, "3": 1}


def test_the_plain_loop_stops_if_too_many_samples_fail(splitting):
    splitting(samples(30, do="raise"), 1)
    for _ in range(2):  # The failures to read are open again.
        with pytest.raises(
            UserError, match=r"20 of the 20 .*of 30.* failures to read are tried again"
        ):
            infer(splitting.run.config, splitting.layout, 0, threads=2, plain=True)


def test_a_switch_of_the_script_runs_the_plain_loop(splitting):
    run = splitting.run
    splitting(samples(3), 1)
    run.script("infer.py", "--num-shards", "1", "--rank", "0", "--plain")
    assert set(run.answers()) == set(keys(3))
    assert not list(Path(splitting.manifest.journal).glob("*.statistics.json"))
