"""Shows the progress of a long step: in log lines, in a small file, and in words."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from video_pipeline.common.files import write_text

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""How often a step logs its progress."""


class Progress:
    """Counts a step of the workflow that may take minutes.

    It logs a line now and then. As a context manager it also keeps a small file for
    :mod:`video_pipeline.watch`.
    """

    def __init__(self, path: Path, step: str, unit: str, total: int | None = None) -> None:
        """``unit``: the noun for what is counted, in the plural; ``total``: None if not known."""
        self._path = path
        self._state: dict[str, Any] = {"step": step, "unit": unit, "done": 0, "total": total}
        self._begun = time.monotonic()
        self._next_write = 0.0
        self._next_log = self._begun + LOG_SECONDS

    def __enter__(self) -> Progress:
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def advance(self, count: int = 1) -> None:
        """Note that ``count`` more are done."""
        self._state["done"] += count
        now = time.monotonic()
        if now < self._next_write:
            return
        self._write()
        self._next_write = now + LOG_SECONDS / 2
        if now >= self._next_log:
            self._next_log = now + LOG_SECONDS
            logger.info("%s: %s", self._state["step"], describe_step(self._state))

    def _write(self) -> None:
        self._state |= {"seconds": time.monotonic() - self._begun, "updated_at": time.time()}
        write_text(self._path, json.dumps(self._state) + "\n")


def describe_step(state: dict[str, Any]) -> str:
    """``1,200,000 of 5,000,000 lines (24.0%), 120,000 a second, 32 s left``."""
    rate = state["done"] / max(state["seconds"], 1e-9)
    words = [f"{count(state['done'], state['total'])} {state['unit']}", f"{rate:,.0f} a second"]
    if state["total"] is not None and rate:
        words.append(f"{duration((state['total'] - state['done']) / rate)} left")
    return ", ".join(words)


def count(done: int, total: int | None) -> str:
    """``1,200 of 5,000 (24.0%)``; ``1,200`` without a total."""
    return f"{done:,}" if total is None else f"{done:,} of {total:,} ({share(done, total)})"


def share(part: float, whole: float) -> str:
    """The share in per cent; never 100% before all is there."""
    ratio = part / whole if whole else 1.0
    return f"{min(ratio, 0.999) if part < whole else ratio:.1%}"


def duration(seconds: float) -> str:
    """``45 s``, ``8 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
