"""Makes the time line of all ranks, and curves of their speed, from their jobs' statistics."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from video_pipeline.common.figures import round_up
from video_pipeline.common.progress import duration

PAUSE_SECONDS = 60.0
"""A pause is cut out of the time axis if it lasts so long, and a twentieth of the whole."""

CELLS = 60
"""The most pieces of the bar of an attempt."""

BINS = 120
"""The most points of a curve over time."""

TIME_UNITS = (1, 60, 3600, 86400)
"""Second, minute, hour and day, in seconds."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a rank, from the statistics of its job (:mod:`video_pipeline.run.statistics`).

    Attributes:
        start: When it had its GPUs, in Unix seconds.
        ready: When it made its first request; ``end`` if there was none.
        end: When it wrote its statistics last.
    """

    job: dict[str, Any]
    start: float
    ready: float
    end: float

    @classmethod
    def of(cls, job: dict[str, Any]) -> Attempt:
        start, end = job["started_at"], job["started_at"] + job["lasted"]
        return cls(job, start, end if job["ready_at"] is None else job["ready_at"], end)

    def moved(self, clock: Clock) -> Attempt:
        """The attempt in the time of ``clock``; it lies within a span of the clock."""
        shift = clock.work_before(self.start) - self.start
        return Attempt(self.job, self.start + shift, self.ready + shift, self.end + shift)

    def sums(self, name: str, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums of the series ``name`` in the bins between ``edges``, the last bin being open.
        The value of a step is spread evenly over it."""
        values, step = self.job["series"][name], self.job["series"]["step"]
        count = max(1, math.ceil(self.job["lasted"] / step))
        totals = np.cumsum([0.0, *values[:count]])
        totals[-1] += sum(values[count:])  # These were counted in the last moment.
        times = np.minimum(self.start + step * np.arange(len(totals)), self.end)
        return np.diff(np.interp([*edges[:-1], math.inf], times, totals))


@dataclass
class Clock:
    """Time without the pauses between invocations: seconds in which any rank was at work.
    ``spans``: begin and end of each stretch of work, in Unix seconds."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, attempts: list[Attempt]) -> Clock:
        spans = _joined(sorted((attempt.start, attempt.end) for attempt in attempts), 0.0)
        return cls(_joined(spans, max(PAUSE_SECONDS, cls(spans).seconds / 20)))

    @property
    def seconds(self) -> float:
        """The length of all spans."""
        return sum(end - start for start, end in self.spans)

    def work_before(self, moment: float) -> float:
        """Seconds of work before ``moment`` (Unix seconds)."""
        return sum(min(max(moment - start, 0.0), end - start) for start, end in self.spans)

    def pauses(self) -> list[dict[str, float]]:
        """The pauses that were cut out: when, and how long they were."""
        return [
            {"at": round(self.work_before(end), 1), "seconds": round(begin - end)}
            for (_, end), (begin, _) in itertools.pairwise(self.spans)
        ]


def _joined(spans: list[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Sorted spans; those that overlap, or are less than ``gap`` seconds apart, become one."""
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] < gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def time_line(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The time line of all ranks, and curves over time, from the statistics of their jobs::

    {"seconds": length of the axis, "began": Unix seconds, "ended": Unix seconds,
     "pauses": [...], "curves": {...}, "ranks": [a row for each rank],
     "starts": {"count": ..., "median": seconds, "longest": seconds} of the models, or None,
     "remarks": [sentences]}
    """
    attempts = list(map(Attempt.of, jobs))
    clock = Clock.of(attempts)
    by_rank: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        by_rank[job["rank"]].append(job)
    ranks = [_rank(rank, by_rank[rank], clock) for rank in sorted(by_rank)]
    return {
        "seconds": round(clock.seconds, 1),
        "began": clock.spans[0][0] if clock.spans else None,
        "ended": clock.spans[-1][1] if clock.spans else None,
        "pauses": clock.pauses(),
        "curves": _curves(attempts, clock),
        "ranks": ranks,
        "starts": _starts(attempts),
        "remarks": _remarks(ranks),
    }


def _starts(attempts: list[Attempt]) -> dict[str, float] | None:
    """How long jobs took from their start to their first request; None if there was none."""
    seconds = [a.ready - a.start for a in attempts if a.job["ready_at"] is not None]
    if not seconds:
        return None
    return {
        "count": len(seconds),
        "median": round(statistics.median(seconds), 1),
        "longest": round(max(seconds), 1),
    }


def _rank(rank: int, jobs: list[dict[str, Any]], clock: Clock) -> dict[str, Any]:
    """The row of a rank: its counts, its shares of waiting, and the bars of its attempts."""
    attempts = list(map(Attempt.of, jobs))
    waited = sum(job["limits"]["decode"] for job in jobs)
    limits = waited + sum(job["limits"]["engine"] for job in jobs)
    seconds = sum(job["seconds"] for job in jobs)
    busy = sum(job["engine_busy_seconds"] for job in jobs)
    return {
        "rank": rank,
        "host": ", ".join(dict.fromkeys(job["host"] for job in jobs)),
        "inferred": sum(job["inferred"] for job in jobs),
        "failed": sum(job["failed"] for job in jobs),
        "ended": round(clock.work_before(max(attempt.end for attempt in attempts)), 1),
        "waited": round(waited, 1),
        "waiting_share": round(waited / limits, 4) if limits else None,
        "busy_share": round(min(1.0, busy / seconds), 4) if seconds else None,
        "attempts": [_bar(attempt, clock) for attempt in attempts],
    }


def _bar(attempt: Attempt, clock: Clock) -> dict[str, Any]:
    """The bar of an attempt. ``engine`` and ``decode`` have a digit for each of its cells: the
    share of the time, in ninths, in which it waited for the engine, or for videos."""
    cells = max(1, min(CELLS, round(attempt.end - attempt.start)))
    edges = np.linspace(attempt.start, attempt.end, cells + 1)
    width = max((attempt.end - attempt.start) / cells, 1e-3)
    engine, decode = (
        "".join(str(min(9, round(9 * share))) for share in attempt.sums(name, edges) / width)
        for name in ("engine", "decode")
    )
    return {
        "start": round(clock.work_before(attempt.start), 1),
        "ready": round(clock.work_before(attempt.ready), 1),
        "end": round(clock.work_before(attempt.end), 1),
        "state": attempt.job["state"],
        "engine": engine,
        "decode": decode,
    }


def _curves(attempts: list[Attempt], clock: Clock) -> dict[str, Any]:
    """Rates of all ranks together over the time of ``clock``: answered samples, failed samples and
    tokens a second, and the number of running jobs. Each curve has a value for each bin of
    ``width`` seconds; ``means`` are over the whole time."""
    seconds = clock.seconds
    width = round_up(seconds / BINS, TIME_UNITS)
    count = max(1, math.ceil(seconds / width))
    edges = np.minimum(width * np.arange(count + 1), seconds)
    lengths = np.maximum(np.diff(edges), 1e-3)
    totals = {name: np.zeros(count) for name in ("inferred", "failed", "tokens", "jobs")}
    for attempt in (attempt.moved(clock) for attempt in attempts):
        for name in ("inferred", "failed", "tokens"):
            totals[name] += attempt.sums(name, edges)
        totals["jobs"] += np.diff(np.clip(edges, attempt.start, attempt.end))
    return {
        "width": width,
        **{name: np.round(row / lengths, 3).tolist() for name, row in totals.items()},
        "means": {
            name: round(row.sum().item() / seconds, 3) if seconds else 0
            for name, row in totals.items()
        },
    }


def _remarks(ranks: list[dict[str, Any]]) -> list[str]:
    """What stands out, as sentences."""
    remarks = []
    ended = {row["rank"]: row["ended"] for row in ranks}
    if len(ended) > 1:
        last = max(ended, key=ended.__getitem__)
        later = ended[last] - statistics.median(ended.values())
        remarks.append(
            f"Rank {last} ended last, {duration(later)} after the median of {len(ended):,} ranks."
        )
    waited = [row for row in ranks if row["waited"] >= 1]
    if waited:
        most = max(waited, key=lambda row: row["waited"])
        remarks.append(
            f"Rank {most['rank']} waited longest for videos: {duration(most['waited'])}, "
            f"{most['waiting_share']:.0%} of its time."
        )
    bad = [row["rank"] for row in ranks for bar in row["attempts"] if bar["state"] != "done"]
    if bad:
        remarks.append(
            f"{len(bad):,} {'attempt' if len(bad) == 1 else 'attempts'} did not end well, of "
            f"{len(set(bad)):,} of {len(ranks):,} ranks."
        )
    return remarks
