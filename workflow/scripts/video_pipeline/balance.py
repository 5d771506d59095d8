"""Balance: what the pending samples weigh, and which rank gets which, so that all ranks end
together."""

from __future__ import annotations

import heapq
import logging
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

import numpy as np

from video_pipeline.config import Config, Data
from video_pipeline.errors import UserError
from video_pipeline.video.access import Access, limit_access

logger = logging.getLogger(__name__)

BYTES_PER_SECOND = 1_000_000
"""The size of a file says nothing about a short segment of it, so a segment weighs no more than its
seconds times this: the 8 Mbit/s that YouTube recommends for uploads of 1080p at 24 to 30 frames a
second (support.google.com/youtube/answer/1722171)."""

FIRST_FILES = 100
"""A run is stopped only if not one of so many files is there, or of all if they are fewer."""

FEW_MISSING = 0.05
"""Of all samples: no more missing files than these are no sign of a wrong folder."""

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


@dataclass
class MissingFiles:
    """What is known of local files that are not there, of pending samples in the order of the
    input.

    Attributes:
        looked_at: Files that were looked for.
        count: How many of them cannot be found.
        head: How many of the first cannot, before one can.
        first: The first one of them, an absolute path.
    """

    looked_at: int = 0
    count: int = 0
    head: int = 0
    first: str = ""

    def note(self, files: Sequence[str], sizes: np.ndarray) -> None:
        """Count files by what :func:`_sizes` found."""
        missing = np.isnan(sizes)
        if self.head == self.looked_at:
            self.head += int(np.argmin(missing)) if not missing.all() else len(missing)
        if not self.first and missing.any():
            self.first = files[int(np.argmax(missing))]
        self.looked_at += len(files)
        self.count += int(missing.sum())

    def check(self, config: Config, samples: int) -> None:
        """Log how many files are missing; they become error records. ``samples``: of the input.

        Raises :class:`UserError` where it looks like the wrong folder: none of the first
        :data:`FIRST_FILES` is there (or none at all, of an input that has fewer), and they are more
        than :data:`FEW_MISSING` of all samples.
        """
        if not self.count:
            return
        what = (
            f"{self.count:,} of the {self.looked_at:,} files that pending samples name cannot be "
            f"found; the first: {self.first} ({_why(self.first)})"
        )
        is_few = self.count <= FEW_MISSING * samples or config.run.max_error_rate == 1
        is_whole_input = self.head == self.looked_at == samples
        if is_few or not (self.head >= FIRST_FILES or is_whole_input):
            logger.warning("%s. They become error records of stage read", what)
            return
        given = config.data.video_root
        why = "that of data.input_jsonl" if given is None else str(given)
        raise UserError(
            f"{what}. Relative paths are relative to {config.video_root} (data.video_root: {why}). "
            "Nothing was started: "
            f"fix data.video_root, or the paths in {config.data.input_jsonl} "
            "(`run.max_error_rate: 1` accepts them as error records)"
        )


class Weigher:
    """Looks at the files of samples: whether they are there, and what they weigh. Sizes are asked
    for in threads, lengths of videos in processes. Nothing is decoded or downloaded.

    Attributes:
        missing: The files that are not there.
        looked_up: Files that were looked at.
        seconds: How long that took.
    """

    def __init__(self, data: Data, num_processes: int) -> None:
        self._data = data
        self._num_processes = num_processes
        self._threads = ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat")
        self._processes: ProcessPoolExecutor | None = None
        self.missing = MissingFiles()
        self.looked_up = 0
        self.seconds = 0.0

    def __enter__(self) -> Weigher:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        if self._processes is not None:
            self._processes.shutdown()

    def weigh(
        self, uris: Sequence[str], known: np.ndarray, wanted: np.ndarray, files: Sequence[str]
    ) -> np.ndarray:
        """The weights of the ``wanted`` (a mask) among some samples, NaN where one is not
        available. ``uris`` and ``files`` are those of a :class:`ScannedBlock`, ``known`` is what
        :func:`known_weight` said."""
        by, begun = self._data.balance, time.monotonic()
        weights = known.copy()
        sizes = np.full(len(known), np.nan)
        weighed = uris if by == "size" else repeat("")
        named = [file or uri for file, uri in zip(files, weighed, strict=False)]
        places = [at for at in np.flatnonzero(wanted) if _is_local(named[at])]
        if places:
            sizes[places] = self._sizes([named[at] for at in places])
            looked_for = [at for at in places if files[at]]
            self.missing.note([files[at] for at in looked_for], sizes[looked_for])
        if by == "size":
            places = [at for at in places if named[at] == uris[at]]
            found = sizes[places]
        else:
            is_open = wanted & np.isnan(known)
            places = [at for at in np.flatnonzero(is_open) if _is_local(uris[at])]
            found = self._durations([uris[at] for at in places]) if places else []
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


def _is_local(address: str) -> bool:
    return address != "" and address[:4].lower() != "http"


def _why(file: str) -> str:
    """Why a file cannot be found."""
    try:
        os.stat(file)
    except OSError as error:
        return error.strerror
    except ValueError as error:
        return str(error)
    return "it is there now"


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
    from video_pipeline.video.demuxer import header_seconds

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
