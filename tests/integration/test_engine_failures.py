"""An engine that dies or hangs: the shard goes on, and the sample that does it is found."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from helpers import keys, samples
from video_pipeline.commands.retry import retry
from video_pipeline.engine.base import EngineDead
from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.sharding import Sharding


@pytest.fixture
def asked(monkeypatch) -> Counter[str]:
    """How often each sample was in the engine; ``kill`` and ``hang`` hold keys that do that. The
    engine dies once ``together`` samples were in it, and hangs once it has answered as many."""
    counts: Counter[str] = Counter()
    counts.kill, counts.hang, counts.answered = set(), set(), 0
    alive = SimulatedEngine.generate

    async def generate(self, key, request, constraints):
        counts[key] += 1
        while key in counts.hang:
            self.steps += counts.answered < counts.together  # Until then it shows signs of life.
            await asyncio.sleep(0.01)
        while counts.kill and len(self.together) < counts.together:
            self.together.add(key)
            await asyncio.sleep(0.01)
        if key in counts.kill:
            self.dead = True
        await asyncio.sleep(0.05)
        if getattr(self, "dead", False):
            raise EngineDead("killed on purpose")
        answer = await alive(self, key, request, constraints)
        counts.answered += 1
        return answer

    counts.together = 0
    monkeypatch.setattr(SimulatedEngine, "generate", generate)
    monkeypatch.setattr(SimulatedEngine, "together", set(), raising=False)
    return counts


def attempts(splitting, most: int = 10) -> int:
    """Infer rank 0 until it succeeds, as Snakemake's retries do; how many attempts that took."""
    for attempt in range(1, most + 1):
        with contextlib.suppress(EngineDead):
            infer(splitting.run.config, splitting.layout, 0, 1)
            consolidate(splitting.run.config, splitting.layout)
            return attempt
    raise AssertionError(f"not done after {most} attempts")


def dies(splitting, asked, together: int = 1) -> None:
    """An attempt whose engine dies, once so many samples are in it."""
    asked.together = together
    SimulatedEngine.together.clear()
    with pytest.raises(EngineDead):
        infer(splitting.run.config, splitting.layout, 0, 1)


def test_a_sample_that_kills_the_engine_is_quarantined_and_no_other(splitting, asked):
    run = splitting.run
    splitting(samples(40), 1)
    asked.kill, asked.together = {"7"}, 30
    assert attempts(splitting) == 4  # so three retries are enough
    by_status = {record["__key"]: record["__status"] for record in run.records()}
    assert by_status == {**dict.fromkeys(keys(40), "ok"), "7": "error"}
    error = run.records()[7]["__error"]
    assert error["stage"] == "quarantine"
    assert "3 times" in error["message"]
    assert error["message"].endswith("the last time of: killed on purpose")
    assert asked["7"] == 3
    assert run.answers() == {key: 1 for key in keys(40) if key != "7"}

    # the user may ask for it again: then it counts from the beginning
    asked.kill = set()
    Sharding(1).write(splitting.layout.sharding)
    assert retry(run.config, ("quarantine",)) == 1
    assert attempts(splitting) == 1
    assert run.records()[7]["__status"] == "ok"
    assert asked["7"] == 4


@pytest.mark.parametrize("count", [1, 3])
def test_an_engine_that_dies_of_every_sample_is_at_fault_and_no_sample_is(splitting, asked, count):
    run = splitting.run
    splitting(samples(count), 1)
    asked.kill = set(keys(count))
    for together in (1, 1) if count == 1 else (3, 3, 1):  # so three retries are enough
        dies(splitting, asked, together)
    with pytest.raises(UserError, match=r"answered none; .* of: killed on purpose") as said:
        infer(run.config, splitting.layout, 0, 1)
    assert splitting.layout.failure(0).read_text() == str(said.value)  # no engine starts again

    # when the cause is fixed, nobody is in quarantine
    asked.kill = set()
    assert attempts(splitting) == 1
    assert [record["__status"] for record in run.records()] == ["ok"] * count


def test_what_is_already_in_quarantine_does_not_hide_an_engine_that_dies_of_every_sample(
    splitting, asked, monkeypatch
):
    run = splitting.run
    splitting(samples(3), 1)
    asked.kill = set(keys(3))

    async def does_not_load(self, folder):
        raise EngineDead("the model does not load")

    for together in (3, 3, 1):  # Two together, and then of the first sample alone.
        dies(splitting, asked, together)
    with monkeypatch.context() as patch:  # It writes the error of the first sample, and ends.
        patch.setattr(SimulatedEngine, "start", does_not_load)
        dies(splitting, asked)
    dies(splitting, asked)
    with pytest.raises(UserError, match=r"answered none; .* of: killed on purpose"):
        infer(run.config, splitting.layout, 0, 1)

    asked.kill = set()
    assert attempts(splitting) == 1
    assert [record["__status"] for record in run.records()] == ["ok"] * 3


def test_an_engine_that_hangs_ends_the_attempt(splitting, asked):
    run = splitting.run
    run.configure(run={"engine_timeout_s": 1.0})
    splitting(samples(4), 1)
    asked.hang, asked.together = {"2"}, 3
    with pytest.raises(EngineDead, match=r"rank 0: the engine died: .* run.engine_timeout_s: 1 s"):
        infer(run.config, splitting.layout, 0, 1)
    assert sorted(run.answers()) == ["0", "1", "3"]
    asked.hang = set()
    assert attempts(splitting) == 1
    assert [record["__status"] for record in run.records()] == ["ok"] * 4
    assert asked["0"] == 1


def test_a_busy_engine_does_not_hang(splitting):
    """The time counts from its last sign of life, not from the request."""
    run = splitting.run
    simulated = {"seconds_per_output_token": 0.5, "output_tokens": 1, "concurrency": 1}
    run.configure(run={"engine_timeout_s": 2.0, "simulated": simulated})
    splitting(samples(8), 1)
    assert attempts(splitting) == 1
    assert run.answers() == dict.fromkeys(keys(8), 1)


def test_what_must_fail_again_is_noted_until_a_new_run_tries_again(splitting):
    run = splitting.run
    splitting([{**sample, "returns": {"__key": "another"}} for sample in samples(3)], 1)
    with pytest.raises(UserError, match="give back sample") as first:
        infer(run.config, splitting.layout, 0, 1)
    failure = splitting.layout.failure(0)
    assert failure.read_text() == str(first.value)
    splitting([{**sample, "returns": {}} for sample in samples(3)], 1).run_all()
    assert not failure.exists()


DIES_ONCE = """
from video_pipeline.engine.base import EngineDead
from video_pipeline.engine.simulated import SimulatedEngine

_alive = SimulatedEngine.generate


async def _generate(self, key, request, constraints):
    if not (HERE / "engine died").exists():
        (HERE / "engine died").touch()
        raise EngineDead("killed on purpose")
    return await _alive(self, key, request, constraints)


SimulatedEngine.generate = _generate
"""


def test_snakemake_starts_the_job_again(run):
    run.write_plugin((run.folder / "plugin.py").read_text() + DIES_ONCE)
    run.write_samples(samples(5))
    run.snakemake()
    assert run.answers() == dict.fromkeys(keys(5), 1)
    assert (run.folder / "engine died").exists()


def test_a_sample_that_kills_its_process_is_tried_once_more(splitting):
    run = splitting.run
    do = {2: "die once", 4: "die"}
    splitting([{**sample, "do": do.get(sample["id"])} for sample in samples(6)], 1)
    assert attempts(splitting) == 1
    stages = [record.get("__error", {}).get("stage", "ok") for record in run.records()]
    assert stages == ["ok", "ok", "ok", "ok", "crash", "ok"]
    once = dict.fromkeys(keys(6), 1)
    assert run.reads() == {**once, "2": 2, "4": 2}
