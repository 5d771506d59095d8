"""Progress: how far a long step is, in log lines, in a small file, and in words."""

from __future__ import annotations

import json
import logging
import math
import operator
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from video_pipeline.files import write_text

logger = logging.getLogger(__name__)

LOG_SECONDS = 10.0
"""How often a step says how far it is."""

RECENT_SECONDS = 60.0
"""What counts as the pace of a job: that of its last minute."""


class Progress:
    """A step of the workflow that may take minutes. It logs a line now and then, and while it is
    on, as a context manager, it keeps a small file for :mod:`video_pipeline.watch`.
    """

    def __init__(self, path: Path, step: str, unit: str, total: int | None = None) -> None:
        """``unit``: what is counted, in the plural; ``total``: how many there are, if known."""
        self._path = path
        self._state: dict[str, Any] = {
            "step": step,
            "unit": unit,
            "done": 0,
            "total": total,
        }
        self._begun = time.monotonic()
        self._next = 0.0
        self._silent_until = time.monotonic() + LOG_SECONDS

    def __enter__(self) -> Progress:
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self._state["done"] += count
        now = time.monotonic()
        if now < self._next:
            return
        self._write()
        self._next = now + LOG_SECONDS / 2
        if now >= self._silent_until:
            self._silent_until = now + LOG_SECONDS
            logger.info("%s: %s", self._state["step"], describe_step(self._state))

    def _write(self) -> None:
        self._state |= {"seconds": time.monotonic() - self._begun, "updated_at": time.time()}
        write_text(self._path, json.dumps(self._state) + "\n")


def read_step(path: Path) -> dict[str, Any] | None:
    """How far the :class:`Progress` is that writes ``path``, None if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class Pace:
    """How fast jobs are at the moment.

    Attributes:
        samples_per_second: Finished samples, of all jobs together.
        tokens_per_second: Tokens of their prompts and answers.
        decode: Seconds a second that the jobs waited for decoding.
        engine: Seconds a second that they waited for the engine.
        prompt_tokens_per_second: Tokens of the prompts, of the jobs that hold GPUs.
        gpus: The GPUs that these hold.
        flops: Floating point operations a second of their models; NaN where that is not known.
        peak_flops: Those of their GPUs at their peak; NaN likewise.
    """

    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    decode: float = 0.0
    engine: float = 0.0
    prompt_tokens_per_second: float = 0.0
    gpus: int = 0
    flops: float = 0.0
    peak_flops: float = 0.0

    @classmethod
    def of(cls, attempts: Sequence[dict[str, Any]]) -> Pace:
        """The pace of running attempts, from their statistics: that of their last minute, the start
        of the model not counted."""
        return sum(map(cls._of_one, attempts), cls())

    @classmethod
    def _of_one(cls, attempt: dict[str, Any]) -> Pace:
        if attempt.get("ready_at") is None:
            return cls()
        series, ready = attempt["series"], attempt["ready_at"] - attempt["started_at"]
        now = attempt["lasted"]
        first = int(max(now - RECENT_SECONDS, ready) / series["step"])
        seconds = now - max(first * series["step"], ready)
        if seconds <= 0:
            return cls()
        counted = {n: sum(c[first:]) / seconds for n, c in series.items() if n != "step"}
        pace = cls(
            counted["inferred"] + counted["failed"],
            counted["tokens"],
            counted["decode"],
            counted["engine"],
        )
        if not attempt["gpus"] or "prompt_tokens" not in counted:  # an earlier version's
            return pace
        peak = attempt["peak_flops"]
        return replace(
            pace,
            prompt_tokens_per_second=counted["prompt_tokens"],
            gpus=attempt["gpus"],
            flops=math.nan if attempt["flops"] is None else counted["flops"],
            peak_flops=math.nan if peak is None else peak * attempt["gpus"],
        )

    def __add__(self, other: Pace) -> Pace:
        """The pace of both together."""
        return Pace(*map(operator.add, astuple(self), astuple(other)))

    @property
    def bound(self) -> str:
        """What keeps the jobs from being faster; empty if nothing is known."""
        if self.decode + self.engine == 0:
            return ""
        return "decode-bound" if self.decode > self.engine else "engine-bound"

    @property
    def share_of_peak(self) -> float | None:
        """How much of what the GPUs could do the models did; None where that is not known."""
        share = self.flops / self.peak_flops if self.peak_flops else math.nan
        return None if math.isnan(share) else share

    def seconds_left(self, samples: int) -> float | None:
        """How long ``samples`` will take; None if that cannot be said."""
        return samples / self.samples_per_second if self.samples_per_second else None


def describe_step(state: dict[str, Any]) -> str:
    """``1,200,000 of 5,000,000 lines (24.0%), 120,000 a second, 32 s left``."""
    rate = state["done"] / max(state["seconds"], 1e-9)
    words = [f"{count(state['done'], state['total'])} {state['unit']}", f"{rate:,.0f} a second"]
    if state["total"] is not None and rate:
        words.append(f"{duration((state['total'] - state['done']) / rate)} left")
    return ", ".join(words)


def describe_samples(finished: int, total: int, failed: int) -> str:
    """``1,200 of 5,000 (24.0%) done, 3 failed``."""
    return f"{count(finished, total)} done, {failed:,} failed"


def describe_pace(pace: Pace, left: int) -> str:
    """``2.10 videos/s, 1,900 tokens/s, 32 min left, decode-bound``; ``left``: samples to go."""
    words = [f"{pace.samples_per_second:,.2f} videos/s", f"{pace.tokens_per_second:,.0f} tokens/s"]
    seconds = pace.seconds_left(left)
    if left and seconds is not None:
        words.append(f"{duration(seconds)} left")
    return ", ".join([*words, *filter(None, [pace.bound, describe_gpu(pace)])])


def describe_gpu(pace: Pace) -> str:
    """``20,900 prompt tokens/s per GPU (38.2% of its peak)``; empty without one."""
    if not pace.gpus:
        return ""
    peak = pace.share_of_peak
    words = f"{pace.prompt_tokens_per_second / pace.gpus:,.0f} prompt tokens/s per GPU"
    return words if peak is None else f"{words} ({peak:.1%} of its peak)"


def count(done: int, total: int | None) -> str:
    """``1,200 of 5,000 (24.0%)``; ``1,200`` where there is no total."""
    if total is None:
        return f"{done:,}"
    return f"{done:,} of {total:,} ({share(done, total)})"


def share(part: float, whole: float) -> str:
    """In per cent; never 100% before all is there."""
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
