"""What is held at once is bounded, and the simulated engine keeps to its settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers import samples
from video_pipeline import streaming
from video_pipeline.config import load_config
from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.statistics import JobStatistics
from video_pipeline.streaming import Window
from video_pipeline.throughput import throughput

REQUEST = {"prompt": "x" * 40, "multi_modal_data": {}}


async def turns(count: int = 20) -> None:
    """Let the other coroutines of the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


def admitted_while_full(window_settings: dict, sizes: list[int]) -> int:
    """How many samples of these sizes are let in while the engine finishes none."""

    async def main() -> int:
        window = Window(**window_settings)
        admitted = 0

        async def one_after_the_other():
            nonlocal admitted
            for size in sizes:
                await window.admit()
                admitted += 1
                await window.prepared(size)

        task = asyncio.create_task(one_after_the_other())
        await turns(10 * len(sizes))
        before = admitted
        if not task.done():  # one is finished: then there is room again
            await window.release(sizes[0])
            await turns()
            assert admitted > before
            task.cancel()
        return before

    return asyncio.run(main())


WIDE = {"max_bytes": 1e9, "max_samples": 10**6, "max_preparing": 10**6}


@pytest.mark.parametrize(
    ("bounds", "size", "admitted"),
    [
        ({}, 10, 50),
        ({"max_samples": 7}, 10, 7),
        ({"max_bytes": 100}, 10, 10),
        ({"max_bytes": 5}, 10, 1),  # one is always possible
        ({"max_bytes": 99}, 50, 1),
    ],
)
def test_ready_samples_are_bounded(bounds, size, admitted):
    assert admitted_while_full({**WIDE, **bounds}, [size] * 50) == admitted


def test_failed_samples_hold_nothing():
    assert admitted_while_full({**WIDE, "max_bytes": 100}, [0] * 50) == 50


def test_samples_that_are_being_prepared_are_bounded():
    async def main() -> None:
        window = Window(**{**WIDE, "max_preparing": 3})
        for _ in range(3):
            await window.admit()
        fourth = asyncio.create_task(window.admit())
        await turns()
        assert not fourth.done()
        await window.prepared(1)
        await fourth

    asyncio.run(main())


def test_what_is_being_prepared_counts_with_the_largest_seen():
    async def main() -> None:
        window = Window(**{**WIDE, "max_bytes": 100})
        await window.admit()
        await window.prepared(40)
        await window.admit()  # 40 held and 40 expected
        third = asyncio.create_task(window.admit())
        await turns()
        assert not third.done()
        await window.release(40)
        await third

    asyncio.run(main())


class Clock:
    """Stands for the module ``time`` in the window."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("settings", "saturated", "engine"),
    [
        ({}, False, 0.0),
        ({"max_samples": 1}, False, 2.0),  # 1 is held for 2 s: no room
        ({}, True, 5.0),
    ],
)
def test_time_is_charged_to_what_the_run_waits_for(monkeypatch, settings, saturated, engine):
    clock = Clock()
    monkeypatch.setattr(streaming, "time", clock)

    async def main() -> dict[str, float]:
        window = Window(**{**WIDE, **settings}, engine_is_saturated=lambda: saturated)
        await window.admit()
        window.start_clock()
        clock.now = 3.0
        await window.prepared(10)
        clock.now = 5.0
        await window.release(10)
        return window.limits

    assert asyncio.run(main()) == {"decode": 5.0 - engine, "engine": engine}


def test_after_the_last_read_the_engine_is_what_is_left(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(streaming, "time", clock)

    async def main() -> dict[str, float]:
        window = Window(**WIDE)
        await window.admit()
        window.start_clock()
        window.all_admitted()
        clock.now = 1.0
        await window.prepared(10)  # until here it was being read
        clock.now = 5.0
        await window.release(10)
        return window.limits

    assert asyncio.run(main()) == {"decode": 1.0, "engine": 4.0}


def job(rank: int, decode: float, engine: float, **more) -> dict:
    statistics = JobStatistics(rank, num_workers=2, inferred=10, seconds=decode + engine, **more)
    statistics.limits = {"decode": decode, "engine": engine}
    statistics.ready_at = statistics.started_at
    return statistics.as_dict()


def test_the_summary_says_what_bounds_the_run():
    assert throughput([job(0, 7.0, 3.0)])["bound"] == "decode-bound: give it more cores"
    assert throughput([job(0, 3.0, 7.0)])["bound"] == "engine-bound"
    assert throughput([job(0, 7.0, 3.0), job(1, 1.0, 9.0)])["bound"] == "engine-bound"
    assert throughput([]) == {"bound": "nothing was inferred"}


def test_rates_are_of_all_attempts_together():
    spent = {"video_seconds": 40.0, "prompt_tokens": 90, "completion_tokens": 10}
    first = job(0, 6.0, 4.0, engine_busy_seconds=9.0, decode_busy_seconds=10.0, **spent)
    again = job(0, 5.0, 5.0, engine_busy_seconds=9.0, decode_busy_seconds=10.0, **spent)
    other = job(1, 5.0, 0.0, engine_busy_seconds=4.5, decode_busy_seconds=5.0, **spent)
    for attempt, ready in ((first, 0.0), (again, 100.0), (other, 2.0)):
        attempt["ready_at"] = ready
    assert throughput([first, again, other]) == {
        "seconds": 20.0,  # rank 1 ran beside the first of the two attempts of rank 0
        "videos_per_second": 1.5,
        "video_hours_per_hour": 6.0,
        "tokens_per_second": 15.0,
        "cards": [],
        "prompt_tokens_per_second_per_gpu": None,
        "share_of_peak": None,
        "engine_busy_share": 0.9,
        "engine_waiting_share": 0.1,
        "decode_workers_load": 0.5,
        "bound": "decode-bound: give it more cores",
    }


def simulated(**settings) -> SimulatedEngine:
    return SimulatedEngine(load_config({"run": {"engine": "simulated", "simulated": settings}}))


def answer(engine: SimulatedEngine, key: str):
    async def ask():
        await engine.start(Path())
        return await engine.generate(key, REQUEST)

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


def test_the_simulated_engine_bounds_what_runs_at_once(monkeypatch):
    """Its pauses are counted, not waited for."""
    running, most = 0, 0

    async def pause(seconds):
        nonlocal running, most
        assert seconds == pytest.approx(10 * 2.0 + 16 * 1.0)
        running += 1
        most = max(most, running)
        await turns(3)
        running -= 1

    engine = simulated(seconds_per_prompt_token=2.0, seconds_per_output_token=1.0, concurrency=4)

    async def main() -> None:
        await engine.start(Path())
        jobs = [engine.generate(str(sample["id"]), REQUEST) for sample in samples(20)]
        real = asyncio.sleep
        monkeypatch.setattr(
            "video_pipeline.engine.simulated.asyncio.sleep",
            lambda seconds: pause(seconds) if seconds else real(seconds),
        )
        await asyncio.gather(*jobs)

    asyncio.run(main())
    assert most == 4
