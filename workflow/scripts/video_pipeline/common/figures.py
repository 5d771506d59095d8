"""Figures for people: round numbers, histograms and quantiles of many values."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS_PER_OCTAVE = 4
"""Bins of a histogram of times between a time and its double."""

SHORTEST_SECONDS = 1e-3
"""The first bin of a histogram of times also counts all that took less."""


def figures(values: array[int] | array[float]) -> dict[str, Any] | None:
    """``total``, ``min``, ``median``, ``p95`` (the 95th percentile) and ``max`` of ``values``; None
    if there are none."""
    if not values:
        return None
    numbers = np.asarray(values)
    by_name = {
        "total": numbers.sum(),
        "min": numbers.min(),
        "median": np.median(numbers),
        "p95": np.percentile(numbers, 95),
        "max": numbers.max(),
    }
    return {name: round(figure.item(), 3) for name, figure in by_name.items()}


def weighted_quantile(counts: Mapping[int, int], share: float) -> int:
    """The smallest value that at least ``share`` of all do not exceed; ``counts`` says how often
    each value occurred."""
    values = np.repeat(list(counts), list(counts.values()))
    return int(np.quantile(values, share, method="inverted_cdf"))


def time_bin(seconds: float) -> int:
    """The bin of ``seconds`` in a histogram of times. Four times the seconds are 8 bins further."""
    return math.floor(BINS_PER_OCTAVE * math.log2(max(seconds, SHORTEST_SECONDS)))


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each of several adjacent bins. ``edges`` has one more: the upper edge
    of the last bin. A value on an edge belongs to the bin that begins there."""

    edges: list[float]
    counts: list[int]

    @classmethod
    def of(
        cls,
        values: array[int] | array[float] | Sequence[float],
        edges_of: Callable[[float, float], list[float]],
        weights: Sequence[int] | None = None,
    ) -> Histogram:
        """Count ``values``. ``edges_of`` returns the edges for the smallest and the largest one;
        ``weights`` says how often each occurred (None: once)."""
        if not values:
            return cls([], [])
        numbers = np.asarray(values)
        edges = edges_of(numbers.min().item(), numbers.max().item())
        counts, _ = np.histogram(numbers, [*edges[:-1], math.inf], weights=weights)
        return cls(edges, counts.tolist())

    @classmethod
    def of_time_bins(cls, counts: Mapping[int, int]) -> Histogram:
        """The histogram, in seconds, of ``counts`` by :func:`time_bin`."""
        if not counts:
            return cls([], [])
        bins = range(min(counts), max(counts) + 2)
        edges = [round(2 ** (time_bin / BINS_PER_OCTAVE), 6) for time_bin in bins]
        return cls(edges, [counts.get(time_bin, 0) for time_bin in bins[:-1]])

    def quantile(self, share: float) -> float:
        """The value that ``share`` of all do not exceed, if values were even within their bin."""
        below = np.cumsum([0, *self.counts])
        return round(float(np.interp(share * below[-1], below, self.edges)), 4)

    def as_rows(self) -> list[dict[str, Any]]:
        """``from``, ``to`` and ``count`` of each bin."""
        return [
            {"from": low, "to": high, "count": count}
            for (low, high), count in zip(itertools.pairwise(self.edges), self.counts, strict=True)
        ]


def round_numbers(power: int = 0) -> Iterator[float]:
    """1, 2 and 5 times powers of ten, from ``10**power`` on."""
    return (float(f"{digit}e{p}") for p in itertools.count(power) for digit in (1, 2, 5))


def round_up(least: float, units: Sequence[float] = (1.0,)) -> float:
    """The smallest round number, in one of ``units``, that is at least ``least``. With second and
    minute (1 and 60), 15 becomes 20, 55 becomes 60, and 61 becomes 120."""
    unit = max((unit for unit in units if unit <= least), default=units[0])
    rounded = next(digits * unit for digits in round_numbers() if digits * unit >= least)
    return min([rounded, *(unit for unit in units if unit >= least)])


def even_edges(least: float, most: float, *, bins: int = 10) -> list[float]:
    """Edges of about ``bins`` bins of the same round width, for whole numbers."""
    width = int(round_up((most - least + 1) / bins))
    first, last = math.floor(least / width), math.floor(most / width)
    return [index * width for index in range(first, last + 2)]


def growing_edges(least: float, most: float) -> list[float]:
    """Edges at round numbers from 0.001 on: lengths of videos differ by orders of magnitude."""
    edges = [0.0]
    for edge in round_numbers(-3):
        edges = [edge] if edge <= least else [*edges, edge]
        if edge > most:
            break
    return edges
