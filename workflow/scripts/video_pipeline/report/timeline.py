"""When each rank did what, and how fast all were together: from the statistics of their jobs."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from video_pipeline.figures import round_up
from video_pipeline.progress import duration

PAUSE_SECONDS = 60.0
"""Where nobody is at work for so long, and for a twentieth of the whole, the time axis is cut."""

CELLS = 60
"""Pieces of the bar of an attempt, at most."""

BINS = 120
"""Points of a curve over time, at most."""

TIME_UNITS = (1, 60, 3600, 86400)
"""Second, minute, hour and day, in seconds."""


@dataclass(frozen=True)
class Attempt:
    """One attempt of a rank, as its job wrote it down; see :mod:`video_pipeline.statistics`.

    Attributes:
        job: The statistics.
        start: Unix seconds at which it had its GPUs.
        ready: Unix seconds of its first request; ``end`` if there was none.
        end: Unix seconds of its last sign of life.
    """

    job: dict[str, Any]
    start: float
    ready: float
    end: float

    @classmethod
    def of(cls, job: dict[str, Any]) -> Attempt:
        """The attempt with these statistics."""
        start, end = job["started_at"], job["started_at"] + job["lasted"]
        return cls(job, start, end if job["ready_at"] is None else job["ready_at"], end)

    def steps(self, *names: str) -> Iterator[tuple[float, float, list[float]]]:
        """Begin, end and values of each step of the series ``names``."""
        series = self.job["series"]
        columns = [series[name] for name in names]
        for number, values in enumerate(zip(*columns, strict=True)):
            begin = self.start + number * series["step"]
            if begin >= self.end:
                # what came within the last moment
                begin, end = max(self.start, self.end - series["step"]), self.end
            else:
                end = min(begin + series["step"], self.end)
            yield begin, end, list(values)


@dataclass
class Clock:
    """Time without the pauses between invocations: seconds in which any rank was at work.

    Attributes:
        spans: Begin and end, in Unix seconds, of each stretch of work.
    """

    spans: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, attempts: list[Attempt]) -> Clock:
        """The clock of these attempts."""
        spans: list[list[float]] = []
        for start, end in sorted((each.start, each.end) for each in attempts):
            if spans and start <= spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], end)
            else:
                spans.append([start, end])
        shortest = max(PAUSE_SECONDS, sum(end - start for start, end in spans) / 20)
        merged: list[list[float]] = []
        for start, end in spans:
            if merged and start - merged[-1][1] < shortest:
                merged[-1][1] = end
            else:
                merged.append([start, end])
        return cls([(start, end) for start, end in merged])

    @property
    def seconds(self) -> float:
        """Length of the whole."""
        return sum(end - start for start, end in self.spans)

    def at(self, moment: float) -> float:
        """Seconds of work before ``moment`` (Unix seconds)."""
        return sum(min(max(moment - start, 0.0), end - start) for start, end in self.spans)

    def pauses(self) -> list[dict[str, float]]:
        """Where pauses were cut out, and how long they were."""
        return [
            {"at": round(self.at(end), 1), "seconds": round(begin - end)}
            for (_, end), (begin, _) in itertools.pairwise(self.spans)
        ]


def time_line(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The time line of all ranks, and curves over time, from the statistics of their jobs::

    {"seconds": length of the axis, "began": Unix seconds, "ended": Unix seconds,
     "pauses": [...], "curves": {...}, "ranks": [a row for each rank],
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
        "remarks": _remarks(ranks),
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
        "ended": round(clock.at(max(each.end for each in attempts)), 1),
        "waited": round(waited, 1),
        "waiting_share": round(waited / limits, 4) if limits else None,
        "busy_share": round(min(1.0, busy / seconds), 4) if seconds else None,
        "attempts": [_bar(attempt, clock) for attempt in attempts],
    }


def _bar(attempt: Attempt, clock: Clock) -> dict[str, Any]:
    """The bar of an attempt. ``engine`` and ``decode`` hold a digit for each of its cells: tenths
    of the time in which the one or the other kept it from being faster."""
    cells = max(1, min(CELLS, round(attempt.end - attempt.start)))
    width = (attempt.end - attempt.start) / cells
    engine, decode = (
        "".join(str(min(9, round(9 * seconds / width))) if width else "0" for seconds in row)
        for row in _spread([attempt], ("engine", "decode"), attempt.start, width, cells)
    )
    return {
        "start": round(clock.at(attempt.start), 1),
        "ready": round(clock.at(attempt.ready), 1),
        "end": round(clock.at(attempt.end), 1),
        "state": attempt.job["state"],
        "engine": engine,
        "decode": decode,
    }


def _spread(
    attempts: list[Attempt], names: tuple[str, ...], origin: float, width: float, count: int
) -> list[list[float]]:
    """What the series ``names`` of the attempts come to in ``count`` bins of ``width`` seconds from
    ``origin`` on; what happened within a step is spread evenly over it."""
    bins = [[0.0] * count for _ in names]
    if not width:
        return bins
    for attempt in attempts:
        for begin, end, values in attempt.steps(*names):
            first = min(max(int((begin - origin) / width), 0), count - 1)
            last = min(max(int((end - origin) / width), first), count - 1)
            for number in range(first, last + 1):
                left, right = origin + number * width, origin + (number + 1) * width
                share = (min(end, right) - max(begin, left)) / (end - begin) if end > begin else 1.0
                if share > 0:
                    for row, value in zip(bins, values, strict=True):
                        row[number] += share * value
    return bins


def _curves(attempts: list[Attempt], clock: Clock) -> dict[str, Any]:
    """Rates of all ranks together over the time of ``clock``, a value for each bin of ``width``
    seconds: answered and failed samples and tokens a second, and how many jobs were at work.
    ``means`` are those of the whole time."""
    seconds = clock.seconds
    width = round_up(seconds / BINS, TIME_UNITS)
    count = max(1, math.ceil(seconds / width))
    names = ("inferred", "failed", "tokens")
    moved = [_moved(attempt, clock) for attempt in attempts]
    rates = _spread(moved, names, 0.0, width, count)
    lengths = [min(width, max(seconds - number * width, 1e-3)) for number in range(count)]
    at_work = [0.0] * count
    for attempt in moved:
        for number in range(count):
            left = number * width
            overlap = min(attempt.end, left + lengths[number]) - max(attempt.start, left)
            at_work[number] += max(0.0, overlap)
    totals = dict(zip((*names, "jobs"), (*rates, at_work), strict=True))
    return {
        "width": width,
        **{
            name: [round(value / length, 3) for value, length in zip(row, lengths, strict=True)]
            for name, row in totals.items()
        },
        "means": {n: round(sum(row) / seconds, 3) if seconds else 0 for n, row in totals.items()},
    }


def _moved(attempt: Attempt, clock: Clock) -> Attempt:
    """The attempt in the time of ``clock``; it lies within one of its spans."""
    start = clock.at(attempt.start)
    shift = start - attempt.start
    return Attempt(attempt.job, start, attempt.ready + shift, attempt.end + shift)


def _remarks(ranks: list[dict[str, Any]]) -> list[str]:
    """What stands out, in words."""
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
            f"Rank {most['rank']} waited longest for decoding: {duration(most['waited'])}, "
            f"{most['waiting_share']:.0%} of its time."
        )
    bad = [row["rank"] for row in ranks for bar in row["attempts"] if bar["state"] != "done"]
    if bad:
        remarks.append(
            f"{len(bad):,} {'attempt' if len(bad) == 1 else 'attempts'} did not end well, of "
            f"{len(set(bad)):,} of {len(ranks):,} ranks."
        )
    return remarks
