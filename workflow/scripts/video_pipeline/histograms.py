"""Figures and histograms of many numbers."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def figures(values: array) -> dict[str, Any] | None:
    """Sum, least, median, 95th percentile and most; None of no values."""
    if not values:
        return None
    numbers = np.frombuffer(values, values.typecode)
    figures = {
        "total": numbers.sum(),
        "min": numbers.min(),
        "median": np.median(numbers),
        "p95": np.percentile(numbers, 95),
        "max": numbers.max(),
    }
    return {name: round(figure.item(), 3) for name, figure in figures.items()}


def histogram(
    values: array, edges_of: Callable[[float, float], list[float]]
) -> list[dict[str, Any]]:
    """How many values lie from one edge up to the next one, this excluded."""
    if not values:
        return []
    numbers = np.frombuffer(values, values.typecode)
    edges = edges_of(float(numbers.min()), float(numbers.max()))
    counts, _ = np.histogram(numbers, [*edges[:-1], math.inf])
    return [
        {"from": low, "to": high, "count": count}
        for (low, high), count in zip(itertools.pairwise(edges), counts.tolist(), strict=True)
    ]


def even_edges(least: float, most: float) -> list[float]:
    """At most eleven steps of 1, 2, 5, 10, 20, ... each."""
    fitting = (step for step in _round_numbers() if step >= 1 and step * 10 > most - least)
    step = int(next(fitting))
    first, last = math.floor(least / step), math.floor(most / step)
    return [number * step for number in range(first, last + 2)]


def growing_edges(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten: lengths of videos differ by orders of magnitude."""
    edges = [0.0]
    for edge in _round_numbers():
        edges = [edge] if edge <= least else [*edges, edge]
        if edge > most:
            return edges
    raise AssertionError("there are round numbers without end")


def _round_numbers() -> Iterator[float]:
    """0.001, 0.002, 0.005, 0.01, ..."""
    return (float(f"{digit}e{power}") for power in itertools.count(-3) for digit in (1, 2, 5))
