"""Balance: what the pending samples weigh, and which rank gets which, so that all ranks end
together."""

from __future__ import annotations

import heapq
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from video_pipeline.config import Data
from video_pipeline.video.access import Access, limit_access

BYTES_PER_SECOND = 1_000_000
"""The size of a file says nothing about a short segment of it, so a segment weighs no more than its
seconds times this: the 8 Mbit/s that YouTube recommends for uploads of 1080p at 24 to 30 frames a
second (support.google.com/youtube/answer/1722171)."""

STAT_THREADS = 32
"""On a network file system `stat` is nearly all waiting."""

_TOO_LONG = 1e8  # seconds: 3 years
_HEADERS_AT_ONCE = 16
_SINGLE, _BUNDLES = 100_000, 1_000_000

BATCH = 1 << 14
"""Samples that are worked on at once where temporary arrays would add up."""


@dataclass
class Balance:
    """How even the split came out.

    Attributes:
        by: ``data.balance``.
        longest: Weight of the heaviest rank's pending samples / the mean of all ranks.
        longest_by_count: The same if each rank got as many samples, in input order.
        looked_up: Files whose size was asked for or whose header was read.
        unknown: Pending samples of unknown weight; they count as the median of the others.
        seconds: How long looking up took.
    """

    by: str
    longest: float = 1.0
    longest_by_count: float = 1.0
    looked_up: int = 0
    unknown: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def known_weight(raw: dict[str, Any], by: str) -> float:
    """What a sample itself says about its weight, NaN if nothing.

    ``count``: 1. ``duration``: its seconds. ``size``: the most bytes that its segment weighs.
    """
    if by == "count":
        return 1.0
    begin, end = raw.get("video_start"), raw.get("video_end")
    if by == "size" and begin is None and end is None:
        return math.nan
    whole = raw.get("duration")
    is_number = isinstance(whole, float) or (isinstance(whole, int) and type(whole) is not bool)
    if is_number and 0 < whole < math.inf:
        end = whole if end is None else min(end, whole)
    if end is None:
        return math.nan
    seconds = end - (begin or 0)
    if not 0 < seconds < _TOO_LONG:  # the reader will say what is wrong with it
        return math.nan
    return seconds * BYTES_PER_SECOND if by == "size" else seconds


class Weigher:
    """Looks up what samples weigh: sizes of files in threads, lengths of videos in processes.
    Nothing is decoded, and nothing is downloaded.

    Attributes:
        looked_up: Files that were looked at.
        seconds: How long that took.
    """

    def __init__(self, data: Data, num_processes: int) -> None:
        self._data = data
        self._num_processes = num_processes
        self._threads = ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat")
        self._processes: ProcessPoolExecutor | None = None
        self.looked_up = 0
        self.seconds = 0.0

    def __enter__(self) -> Weigher:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        if self._processes is not None:
            self._processes.shutdown()

    def weigh(self, uris: Sequence[str], known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The weights of the ``wanted`` (a mask) among some videos, NaN where one is not to be had;
        ``known`` is what :func:`known_weight` said."""
        by = self._data.balance
        look = wanted if by == "size" else wanted & np.isnan(known)
        places = [at for at in np.flatnonzero(look) if uris[at][:4].lower() != "http"]
        if not places:
            return known
        begun = time.monotonic()
        files = [uris[at] for at in places]
        found = self._sizes(files) if by == "size" else self._durations(files)
        weights = known.copy()
        weights[places] = np.fmin(known[places], found)  # the one that is there, or the smaller one
        self.looked_up += len(places)
        self.seconds += time.monotonic() - begun
        return weights

    def _sizes(self, files: list[str]) -> np.ndarray:
        step = -(-len(files) // STAT_THREADS)
        slices = [files[at : at + step] for at in range(0, len(files), step)]
        return np.concatenate(list(self._threads.map(_sizes, slices)))

    def _durations(self, files: list[str]) -> np.ndarray:
        if self._processes is None:
            self._processes = ProcessPoolExecutor(
                self._num_processes,
                multiprocessing.get_context("spawn"),
                initializer=limit_access,
                initargs=(Access.of(self._data),),
            )
        starts = range(0, len(files), _HEADERS_AT_ONCE)
        slices = [files[at : at + _HEADERS_AT_ONCE] for at in starts]
        try:
            return np.concatenate(list(self._processes.map(_durations, slices)))
        except BrokenProcessPool:  # a file kills its reader: it is found by halves
            self._processes = None
        if len(files) == 1:
            return np.array([math.nan])
        middle = len(files) // 2
        halves = files[:middle], files[middle:]
        return np.concatenate([self._durations(half) for half in halves])


def _sizes(files: list[str]) -> np.ndarray:
    """The size of each file in bytes, at least 1, NaN where there is no file."""
    sizes = np.full(len(files), np.nan)
    for number, file in enumerate(files):
        try:
            sizes[number] = max(os.stat(file).st_size, 1)
        except (OSError, ValueError):
            continue
    return sizes


def _durations(files: list[str]) -> list[float]:
    """The seconds that each file's header says it lasts, NaN where it does not."""
    from video_pipeline.video.container import header_seconds

    found = []
    for file in files:
        try:
            found.append(header_seconds(file) or math.nan)
        except Exception:  # whatever it is, the reader will say so
            found.append(math.nan)
    return found


def deal(weights: np.ndarray, num_ranks: int, balance: Balance) -> np.ndarray:
    """The rank of each pending sample, longest processing time first (Graham 1969): the heaviest
    that is left goes to the rank that has least.

    ``weights`` are float32 and positive; those that are unknown (NaN) are replaced by the median.
    Fills in ``balance``.
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
    dealt = _longest_first(weights, num_ranks)
    balance.longest = _longest(weights, dealt, num_ranks)
    return dealt


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
    # positive floats sort as their bits do
    order = sorted_with_positions(~weights.view(np.uint32)).astype(np.uint32)
    # Of very many samples the lighter ones go in bundles of neighbours, which weigh the same.
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
    dealt = np.empty(len(order), np.uint32)
    dealt[order] = np.repeat(chosen, np.diff(starts, append=len(order)))
    return dealt
