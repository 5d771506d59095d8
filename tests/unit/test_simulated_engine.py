"""The simulated engine keeps to its settings."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from helpers import samples
from video_pipeline.config import load_config
from video_pipeline.engine.base import Constraints
from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.tasks.scores import label_scores

REQUEST = {"prompt": "x" * 40, "multi_modal_data": {}}


def simulated(**settings) -> SimulatedEngine:
    return SimulatedEngine(load_config({"run": {"engine": "simulated", "simulated": settings}}))


def answer(engine: SimulatedEngine, key: str):
    async def ask():
        await engine.start(Path())
        return await engine.generate(key, REQUEST, Constraints())

    return asyncio.run(ask())


def test_simulated_answers_are_made_from_the_key():
    first, again, other = (answer(simulated(), key) for key in ("a", "a", "b"))
    assert first == again
    assert first.output_text != other.output_text
    assert len(first.output_text.split()) == first.completion_tokens == 16
    assert first.prompt_tokens == 10
    assert first.as_record()["usage"]["finish_reason"] == "stop"


def test_simulated_answers_have_the_length_asked_for():
    assert answer(simulated(output_tokens=3), "a").completion_tokens == 3


def test_a_task_may_set_no_limit():
    constraints = Constraints(sampling_json='{"max_tokens": null}')
    given = asyncio.run(simulated().generate("a", REQUEST, constraints))
    assert (given.completion_tokens, given.finish_reason) == (16, "stop")


def test_simulated_answers_are_as_many_as_asked_for_and_of_the_texts_given():
    sampling = {"n": 3, "logprobs": 1, "max_tokens": 4}
    constraints = Constraints(json.dumps(["yes", "no"]), json.dumps(sampling))
    engine = simulated()
    given = asyncio.run(engine.generate("a", REQUEST, constraints))
    assert len(given.output_text) == len(given.logprobs) == 3
    assert (given.completion_tokens, given.longest, given.finish_reason) == (12, 4, "length")
    for text, tokens in zip(given.output_text, given.logprobs, strict=True):
        assert tokens[0]["token"] == text
        assert label_scores(tokens, ["yes", "no"]) == {"yes": 0.5, "no": 0.5}


def test_the_simulated_engine_bounds_what_runs_at_once(monkeypatch):
    """Its pauses are counted, not waited for."""
    running, most = 0, 0

    async def pause(seconds):
        nonlocal running, most
        assert seconds == pytest.approx(10 * 2.0 + 16 * 1.0)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    engine = simulated(seconds_per_prompt_token=2.0, seconds_per_output_token=1.0, concurrency=4)

    async def main() -> None:
        await engine.start(Path())
        jobs = [
            engine.generate(str(sample["id"]), REQUEST, Constraints()) for sample in samples(20)
        ]
        real = asyncio.sleep
        monkeypatch.setattr(
            "video_pipeline.engine.simulated.asyncio.sleep",
            lambda seconds: pause(seconds) if seconds else real(seconds),
        )
        await asyncio.gather(*jobs)

    asyncio.run(main())
    assert most == 4
