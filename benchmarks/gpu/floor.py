"""The engine alone: it has a fixed number of requests at once, which were prepared in advance, and
each answer admits the next.

One start of the engine measures several windows (``BENCH_WINDOWS``). The other steps are compared
with the first; the others show the effect of ``run.max_in_flight``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.common import (
    CLOCK,
    COUNTED,
    IN_FLIGHT,
    MEAN_TOKENS,
    MEASURE,
    RAMP,
    RUNS,
    STEP,
    VLLM,
    Samplers,
    clips,
    configuration,
    heading,
    save,
    window,
)
from benchmarks.gpu.lengths import lengths

DISTINCT = 16
"""Clips that the requests are made of."""

WINDOWS = [IN_FLIGHT, 2 * IN_FLIGHT, IN_FLIGHT // 2] if STEP == "floor" else [IN_FLIGHT]
if os.environ.get("BENCH_WINDOWS"):
    WINDOWS = [int(size) for size in os.environ["BENCH_WINDOWS"].split(",")]


def main() -> None:
    from video_pipeline.config import load_config
    from video_pipeline.engine.vllm.engine import VllmEngine

    from benchmarks.engine_only import prepared_requests

    timeline = {"began": CLOCK.began, "imported": time.time()}
    CLOCK.wait_for_turn()
    timeline["turn"] = time.time()
    config = load_config(configuration(RUNS / STEP, VLLM))
    engine = VllmEngine(config)
    timeline["configured"] = time.time()
    preparing_engine = VllmEngine(config)  # a preparer changes the configuration that it is given
    result = {**heading(), "timeline": timeline, "windows": {}}
    save(result)
    prepared: list[Any] = []

    def prepare() -> None:
        began = time.time()
        prepared.extend(prepared_requests(config, preparing_engine, clips()[:DISTINCT]).values())
        timeline["prepare_seconds"] = time.time() - began

    async def run() -> None:
        preparing = threading.Thread(target=prepare)
        preparing.start()
        await engine.start(Path(tempfile.mkdtemp()))
        timeline["engine_up"] = time.time()
        save(result)
        await asyncio.to_thread(preparing.join)
        timeline["prepared"] = time.time()
        stream = Stream(engine, prepared)
        result.update(await stream.warm_up())
        save(result)
        await measure(stream, result)
        save({**result, "complete": True})
        os._exit(0)  # the driver ends the engine's process: a clean end takes time of the machine

    asyncio.run(run())


async def measure(stream: Stream, result: dict[str, Any]) -> None:
    """Measure the windows one after the other, and save the results after each."""
    ends_at = time.monotonic() + min(MEASURE, CLOCK.left() - 15)
    for size in WINDOWS:
        left = ends_at - time.monotonic()
        if result["windows"] and left < 15:
            break
        samplers = Samplers()
        counted = await stream.hold(size, max(5.0, left))
        samplers.stop()
        steady = counted["steady"]
        one = {**counted, "machine": samplers.of(steady)}
        result["windows"][str(size)] = one
        if size == WINDOWS[0]:
            result.update(one)
        print(size, steady.get("videos_per_second"), flush=True)
        save(result)


class Stream:
    """Keeps a number of requests in the engine; the number can be changed while it runs."""

    def __init__(self, engine: Any, prepared: list[Any]) -> None:
        from video_pipeline.engine.base import Constraints

        self._constraints = Constraints()
        self._engine = engine
        self._prepared = prepared
        self._numbers = itertools.count()
        self._lengths = lengths(MEAN_TOKENS)
        self._ends: list[float] = []
        self._size = self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def _ask(self) -> Any:
        """Ask one of the prepared requests under a new name, which no cache knows."""
        number = next(self._numbers)
        prepared = self._prepared[number % len(self._prepared)]
        names = {
            modality: [f"request {number}-{modality}-{i}" for i in range(len(hashes))]
            for modality, hashes in prepared["mm_hashes"].items()
        }
        limited = self._constraints.with_max_tokens(next(self._lengths))
        request = {**prepared, "mm_hashes": names}
        return await self._engine.generate(f"request {number}", request, limited)

    async def warm_up(self) -> dict[str, Any]:
        """Ask the first request, some more, and one alone."""
        began = time.time()
        await self._ask()
        first = time.time() - began
        await asyncio.gather(*(self._ask() for _ in range(8)))
        began = time.time()
        answer = await self._ask()
        return {
            "first_request_seconds": first,
            "one_request_alone_seconds": time.time() - began,
            "one_request_alone_tokens": answer.completion_tokens,
            "prompt_tokens_each": answer.prompt_tokens,
            "completion_tokens_each": MEAN_TOKENS,
        }

    async def hold(self, size: int, seconds: float) -> dict[str, Any]:
        """Hold ``size`` requests until enough answers have come, for ``seconds`` at most."""
        ramp = max(1, RAMP * size // IN_FLIGHT)
        counted = max(2, COUNTED if size > IN_FLIGHT else COUNTED * size // IN_FLIGHT)
        self._size, self._ends = size, []
        began, cpu = time.time(), time.process_time()
        while self._running < size:
            self._running += 1
            self._tasks.add(asyncio.create_task(self._keep_asking()))
        drained = 0.0
        while time.time() - began < seconds and len(self._ends) < ramp + counted:
            await asyncio.sleep(0.05)
            for task in [task for task in self._tasks if task.done()]:
                self._tasks.discard(task)
                task.result()  # a request that fails ends the step
            if self._running > size:  # those of a larger window before are still being answered
                self._ends.clear()
                drained = time.time() - began
        ended, ends = time.time(), list(self._ends)
        return {
            "steady": window(ends, size, ramp, counted),
            "answered": len(ends),
            "seconds": ended - began,
            "drained_after": drained,
            "first_answer_after": min(ends, default=ended) - began,
            "submit_cpu_seconds_each": (time.process_time() - cpu) / max(1, len(ends)),
            "ends": [round(end - began, 3) for end in ends],
        }

    async def _keep_asking(self) -> None:
        while self._running <= self._size:
            await self._ask()
            self._ends.append(time.time())
        self._running -= 1


if __name__ == "__main__":
    main()
