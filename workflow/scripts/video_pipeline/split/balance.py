"""Balances the pending samples over the ranks, so that all ranks end together."""

from __future__ import annotations

import heapq
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_SINGLE, _BUNDLES = 100_000, 1_000_000

BATCH = 1 << 14
"""Samples that are handled at once, so that temporary arrays stay small."""


@dataclass
class BalanceReport:
    """How even the split is. ``longest`` is the weight of the heaviest rank's pending samples / the
    mean of all ranks."""

    by: str  # data.balance.
    longest: float = 1.0
    longest_by_count: float = 1.0  # If each rank got as many samples, in input order.
    looked_up: int = 0  # Files whose size was asked for or whose header was read.
    unknown: int = 0  # Pending samples of unknown weight; they count as the median of the others.
    seconds: float = 0.0  # Time that looking up took.

    def as_dict(self) -> dict[str, Any]:
        """The report in the manifest."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def assign_ranks(weights: np.ndarray, num_ranks: int, balance: BalanceReport) -> np.ndarray:
    """The rank of each pending sample, by longest processing time first (Graham 1969): the heaviest
    remaining sample goes to the lightest rank.

    ``weights`` are float32 and positive; the median replaces unknown ones (NaN). Fills in
    ``balance``.
    """
    unknown = np.isnan(weights)
    balance.unknown = int(unknown.sum())
    if balance.unknown:
        known = weights[~unknown]
        weights[unknown] = np.median(known) if len(known) else 1.0
    by_count = np.resize(np.arange(num_ranks, dtype=np.uint32), len(weights))
    balance.longest_by_count = balance.longest = _longest(weights, by_count, num_ranks)
    if balance.by == "count" or num_ranks == 1:
        return by_count
    del by_count
    ranks = _longest_first(weights, num_ranks)
    balance.longest = _longest(weights, ranks, num_ranks)
    return ranks


def _longest(weights: np.ndarray, ranks: np.ndarray, num_ranks: int) -> float:
    loads = np.zeros(num_ranks)
    for begin in range(0, len(weights), BATCH):
        part = slice(begin, begin + BATCH)
        loads += np.bincount(ranks[part], weights[part], num_ranks)
    return float(loads.max() / loads.mean()) if loads.any() else 1.0


def sorted_with_positions(keys: np.ndarray) -> np.ndarray:
    """uint64, ascending: each uint32 of ``keys`` in the upper half, its position in the lower."""
    pairs = np.empty(len(keys), np.uint64)
    for begin in range(0, len(keys), BATCH):
        part = keys[begin : begin + BATCH].astype(np.uint64) << np.uint64(32)
        pairs[begin : begin + BATCH] = part | np.arange(begin, begin + len(part), dtype=np.uint64)
    pairs.sort()
    return pairs


def _longest_first(weights: np.ndarray, num_ranks: int) -> np.ndarray:
    # Positive floats sort as their bits do.
    order = sorted_with_positions(~weights.view(np.uint32)).astype(np.uint32)
    # If there are very many samples, the lighter ones go in bundles of similar weight.
    size = -(-max(len(order) - _SINGLE, 0) // _BUNDLES) or 1
    single = min(_SINGLE, len(order))
    starts = np.concatenate([np.arange(single), np.arange(single, len(order), size)])
    if not len(starts):
        return order
    sums = np.add.reduceat(weights[order], starts, dtype=np.float64)
    loads = [(0.0, rank) for rank in range(num_ranks)]
    chosen = np.empty(len(starts), np.uint32)
    for begin in range(0, len(starts), BATCH):
        batch = []
        for weight in sums[begin : begin + BATCH].tolist():
            load, rank = loads[0]
            heapq.heapreplace(loads, (load + weight, rank))
            batch.append(rank)
        chosen[begin : begin + len(batch)] = batch
    ranks = np.empty(len(order), np.uint32)
    ranks[order] = np.repeat(chosen, np.diff(starts, append=len(order)))
    return ranks
