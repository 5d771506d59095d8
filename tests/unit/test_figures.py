"""Round numbers, histograms and quantiles."""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from video_pipeline.common.figures import (
    Histogram,
    even_edges,
    figures,
    growing_edges,
    round_numbers,
    round_up,
    time_bin,
    weighted_quantile,
)


def test_round_numbers():
    assert list(islice(round_numbers(-1), 6)) == [0.1, 0.2, 0.5, 1, 2, 5]


@pytest.mark.parametrize(("least", "rounded"), [(0, 1), (1, 1), (1.1, 2), (37, 50), (50.5, 100)])
def test_numbers_are_rounded_up(least, rounded):
    assert round_up(least) == rounded


@pytest.mark.parametrize(
    ("least", "rounded"), [(15, 20), (55, 60), (100, 120), (3000, 3000), (3001, 3600)]
)
def test_a_round_number_may_be_one_of_a_larger_unit(least, rounded):
    assert round_up(least, (1, 60, 3600)) == rounded


@pytest.mark.parametrize(
    ("least", "most", "edges"),
    [
        (137, 209, [130, 140, 150, 160, 170, 180, 190, 200, 210]),
        (5, 5, [5, 6]),
        (0, 9, list(range(11))),
        (0, 10, [0, 2, 4, 6, 8, 10, 12]),
        (4000, 12345, [4000, 5000, 6000, 7000, 8000, 9000, 10000, 11000, 12000, 13000]),
    ],
)
def test_even_edges(least, most, edges):
    assert even_edges(least, most) == edges


@pytest.mark.parametrize(
    ("least", "most", "edges"),
    [
        (1.5, 30.0, [1, 2, 5, 10, 20, 50]),
        (2.0, 2.0, [2, 5]),
        (0.0001, 0.001, [0, 0.001, 0.002]),
        (3.0, 7200.0, [2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]),
    ],
)
def test_growing_edges(least, most, edges):
    assert growing_edges(least, most) == edges


@pytest.mark.parametrize("edges_of", [even_edges, growing_edges])
def test_a_histogram_counts_every_value(edges_of):
    values = array("d", np.random.default_rng(0).lognormal(3, 2, 1000))
    rows = Histogram.of(values, edges_of).as_rows()
    numbers = np.array(values)
    assert sum(row["count"] for row in rows) == 1000
    for row in rows:
        inside = (numbers >= row["from"]) & (numbers < row["to"])
        assert row["count"] == inside.sum()


def test_a_histogram_of_weighted_values():
    histogram = Histogram.of([7, 30], even_edges, [3, 2])
    assert histogram == Histogram([5, 10, 15, 20, 25, 30, 35], [3, 0, 0, 0, 0, 2])
    assert Histogram.of([], even_edges) == Histogram([], [])


def test_time_bins():
    assert time_bin(1.0) == 0
    assert time_bin(4.0) == 8
    assert time_bin(1.18) == 0
    assert time_bin(1.2) == 1
    assert time_bin(0.0) == time_bin(0.001) == -40


def test_a_histogram_of_times():
    counts = Counter(map(time_bin, [1.0, 1.1, 4.0]))
    histogram = Histogram.of_time_bins(counts)
    assert (histogram.edges[0], histogram.edges[8]) == (1.0, 4.0)
    assert histogram.counts == [2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert Histogram.of_time_bins({}) == Histogram([], [])


def test_the_quantile_of_a_histogram_lies_within_its_bin():
    histogram = Histogram([0, 10, 20], [4, 4])
    assert histogram.quantile(0.25) == 5
    assert histogram.quantile(0.5) == 10
    assert histogram.quantile(0.75) == 15


def test_a_weighted_quantile_is_one_of_the_values():
    counts = {30: 1, 16: 1, 99: 2}
    assert [weighted_quantile(counts, share) for share in (0.25, 0.5, 0.51)] == [16, 30, 99]


def test_figures():
    assert figures(array("q", range(101))) == {
        "total": 5050,
        "min": 0,
        "median": 50,
        "p95": 95,
        "max": 100,
    }
    assert figures(array("q")) is None
