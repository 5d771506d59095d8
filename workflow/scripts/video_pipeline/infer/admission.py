"""Admits samples: bounds how many are being prepared, ready, or in the engine at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Window:
    """Bounds the samples that are held at once: being prepared, ready, or in the engine.

    Attributes:
        max_bytes: Bound on the bytes of the samples that are ready or in the engine.
        max_samples: Bound on their number.
        max_preparing: Bound on the samples in the decode processes.
        engine_is_saturated: Whether more requests would not make the engine faster.
        limits: Seconds in which the run waited for samples (``decode``), the part of these in which
            a decode process was idle because no file had arrived (``network``), and seconds in
            which the run waited for the engine (``engine``).
    """

    max_bytes: float
    max_samples: int
    max_preparing: int
    engine_is_saturated: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.preparing = self.held = self.held_bytes = 0
        self.limits = {"decode": 0.0, "network": 0.0, "engine": 0.0}
        self._lacks_files = False
        self._largest = 0.0
        self._all_admitted = False
        self._since: float | None = None
        self._changed = asyncio.Condition()

    def start_clock(self) -> None:
        """Count ``limits`` from the first call on."""
        if self._since is None:
            self._since = time.monotonic()

    async def admit(self) -> None:
        """Wait until one more sample may be prepared."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            self._account()
            self._all_admitted = False
            self.preparing += 1

    async def prepared(self, num_bytes: int) -> None:
        """Note that a sample of ``num_bytes`` is ready. A sample that failed holds 0 bytes."""
        async with self._changed:
            self._account()
            self.preparing -= 1
            self.held += 1
            self.held_bytes += num_bytes
            if num_bytes:
                # It falls again after a large sample, but slowly: a full /dev/shm ends the job.
                self._largest = max(num_bytes, 0.99 * self._largest)
            self._changed.notify()

    async def release(self, num_bytes: int) -> None:
        """Note that a sample of ``num_bytes`` is finished."""
        async with self._changed:
            self._account()
            self.held -= 1
            self.held_bytes -= num_bytes
            self._changed.notify()

    @contextmanager
    def waiting_for_files(self) -> Iterator[None]:
        """Note that, within the block, no file of another sample has arrived."""
        self._account()
        self._lacks_files = True
        try:
            yield
        finally:
            self._account()
            self._lacks_files = False

    def limits_now(self) -> dict[str, float]:
        """``limits``, including the time up to now."""
        self._account()
        return self.limits

    def all_admitted(self) -> None:
        """Note that no more samples will be admitted, for now."""
        self._account()
        self._all_admitted = True

    def _has_room(self) -> bool:
        if self.preparing + self.held == 0:
            return True  # One sample must always fit, however large it is.
        return self.preparing < self.max_preparing and not self._is_full()

    def _is_full(self) -> bool:
        """Whether the samples that the engine has not finished leave no room for one more."""
        expected_bytes = self.held_bytes + (self.preparing + 1) * self._largest
        return self.held >= self.max_samples or expected_bytes > self.max_bytes

    def _account(self) -> None:
        """Charge the time since the last change to the part that the run was waiting for."""
        if self._since is None:
            return
        now = time.monotonic()
        all_prepared = self._all_admitted and self.preparing == 0
        waits_for_engine = self._is_full() or all_prepared or self.engine_is_saturated()
        seconds = now - self._since
        self.limits["engine" if waits_for_engine else "decode"] += seconds
        if not waits_for_engine and self._lacks_files and self.preparing < self.max_preparing:
            self.limits["network"] += seconds
        self._since = now
