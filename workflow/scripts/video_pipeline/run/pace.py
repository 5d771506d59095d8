"""The pace of running jobs, in numbers and in words."""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass
from typing import Any

from video_pipeline.common.progress import count, duration

RECENT_SECONDS = 60.0
"""The pace of a job is the pace of its last minute."""


def bottleneck(decode: float, network: float, engine: float) -> str:
    """What limits jobs, by the seconds that they waited for samples (``decode``), for files (a part
    of these, ``network``) and for the engine."""
    if decode <= engine:
        return "engine-bound"
    return "network-bound" if network > decode - network else "decode-bound"


@dataclass(frozen=True)
class Pace:
    """How fast jobs are at the moment, all together."""

    samples_per_second: float = 0.0  # Finished samples.
    tokens_per_second: float = 0.0  # Tokens of prompts and answers.
    decode: float = 0.0  # Seconds a second that the jobs waited for samples.
    network: float = 0.0  # The part of these in which they waited for files.
    engine: float = 0.0  # Seconds a second that they waited for the engine.
    # Of the jobs that hold GPUs; NaN if it is not known.
    prompt_tokens_per_second: float = 0.0
    gpus: int = 0
    flops: float = 0.0  # Operations a second of the models.
    peak_flops: float = 0.0  # The peak of the GPUs.

    @classmethod
    def of(cls, attempt: dict[str, Any]) -> Pace:
        """The pace of a running attempt in its last minute, without the start of the model."""
        if attempt.get("ready_at") is None:
            return cls()
        series, ready = attempt["series"], attempt["ready_at"] - attempt["started_at"]
        now = attempt["lasted"]
        first = int(max(now - RECENT_SECONDS, ready) / series["step"])
        seconds = now - max(first * series["step"], ready)
        if seconds <= 0:
            return cls()
        rates = {n: sum(column[first:]) / seconds for n, column in series.items() if n != "step"}
        gpu = {}
        if attempt["gpus"] and "prompt_tokens" in rates:  # Earlier versions did not count them.
            peak = attempt["peak_flops"]
            gpu = {
                "prompt_tokens_per_second": rates["prompt_tokens"],
                "gpus": attempt["gpus"],
                "flops": math.nan if attempt["flops"] is None else rates["flops"],
                "peak_flops": math.nan if peak is None else peak * attempt["gpus"],
            }
        return cls(
            # Earlier versions did not count the finished ones.
            samples_per_second=rates.get("finished", rates["inferred"] + rates["failed"]),
            tokens_per_second=rates["tokens"],
            decode=rates["decode"],
            network=rates.get("network", 0.0),  # Earlier versions did not count it.
            engine=rates["engine"],
            **gpu,
        )

    def __add__(self, other: Pace) -> Pace:
        return Pace(*map(operator.add, astuple(self), astuple(other)))

    @property
    def bound(self) -> str:
        """What limits the jobs, see :func:`bottleneck`; empty if it is not known."""
        if self.decode + self.engine == 0:
            return ""
        return bottleneck(self.decode, self.network, self.engine)

    @property
    def share_of_peak(self) -> float | None:
        """The operations of the models as a share of the GPUs' peak; None if it is not known."""
        share = self.flops / self.peak_flops if self.peak_flops else math.nan
        return None if math.isnan(share) else share

    def seconds_left(self, samples: int) -> float | None:
        """How long ``samples`` will take; None if that is not known."""
        return samples / self.samples_per_second if self.samples_per_second else None


def describe_progress(finished: int, total: int, failed: int, pace: Pace) -> str:
    """``1,200 of 5,000 (24.0%) done, 3 failed; 2.10 videos/s, ...``, without the pace if there is
    none, as while a model is loading."""
    done = f"{count(finished, total)} done, {failed:,} failed"
    return done if pace == Pace() else f"{done}; {_describe_pace(pace, total - finished)}"


def _describe_pace(pace: Pace, left: int) -> str:
    """``2.10 videos/s, 1,900 tokens/s, 32 min left, decode-bound``; ``left``: samples to go."""
    words = [f"{pace.samples_per_second:,.2f} videos/s", f"{pace.tokens_per_second:,.0f} tokens/s"]
    if not pace.samples_per_second:
        words = ["no new answer"]
    seconds = pace.seconds_left(left)
    if left and seconds is not None:
        words.append(f"{duration(seconds)} left")
    return ", ".join([*words, *filter(None, [pace.bound, describe_gpu(pace)])])


def describe_gpu(pace: Pace) -> str:
    """``20,900 prompt tokens/s per GPU (38.2% of its peak)``; empty without a GPU."""
    if not pace.gpus:
        return ""
    peak = pace.share_of_peak
    words = f"{pace.prompt_tokens_per_second / pace.gpus:,.0f} prompt tokens/s per GPU"
    return words if peak is None else f"{words} ({peak:.1%} of its peak)"
