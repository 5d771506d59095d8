"""The samples that are held at once are bounded, and waiting is charged to its cause."""

from __future__ import annotations

import asyncio

import pytest
from video_pipeline.infer import admission
from video_pipeline.infer.admission import Window

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


def test_one_large_sample_does_not_slow_down_the_run_for_ever():
    async def prepared_at_once(window: Window) -> int:
        tasks = [asyncio.create_task(window.admit()) for _ in range(16)]
        await turns()
        for task in tasks:
            task.cancel()
        await turns()
        count = window.preparing
        for _ in range(count):  # They fail, so they hold 0 bytes.
            await window.prepared(0)
            await window.release(0)
        return count

    async def prepare(window: Window, num_bytes: int) -> None:
        await window.admit()
        await window.prepared(num_bytes)
        await window.release(num_bytes)

    async def main() -> list[int]:
        window = Window(max_bytes=1e9, max_samples=512, max_preparing=16)
        at_once = []
        for megabytes, count in ((5, 1), (400, 1), (5, 20), (5, 300)):
            for _ in range(count):
                await prepare(window, megabytes * 10**6)
            at_once.append(await prepared_at_once(window))
        return at_once

    # Right after it the next ones may be as large, and shared memory must not get full.
    assert asyncio.run(main()) == [16, 2, 3, 16]


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
    monkeypatch.setattr(admission, "time", clock)

    async def main() -> dict[str, float]:
        window = Window(**{**WIDE, **settings}, engine_is_saturated=lambda: saturated)
        await window.admit()
        window.start_clock()
        clock.now = 3.0
        await window.prepared(10)
        clock.now = 5.0
        await window.release(10)
        return window.limits

    assert asyncio.run(main()) == {"decode": 5.0 - engine, "network": 0.0, "engine": engine}


def test_after_the_last_read_the_engine_is_what_is_left(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(admission, "time", clock)

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

    assert asyncio.run(main()) == {"decode": 1.0, "network": 0.0, "engine": 4.0}


@pytest.mark.parametrize(("max_preparing", "network"), [(2, 3.0), (1, 0.0)])
def test_waiting_for_files_counts_if_a_decode_process_has_nothing_to_do(
    monkeypatch, max_preparing, network
):
    clock = Clock()
    monkeypatch.setattr(admission, "time", clock)

    async def main() -> dict[str, float]:
        window = Window(**{**WIDE, "max_preparing": max_preparing})
        await window.admit()
        window.start_clock()
        clock.now = 1.0
        with window.waiting_for_files():
            clock.now = 4.0
        clock.now = 5.0
        return window.limits_now()

    assert asyncio.run(main()) == {"decode": 5.0, "network": network, "engine": 0.0}
