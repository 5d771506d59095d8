"""Weighs the pending samples, and checks that their files exist."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from video_pipeline.config import Config, Data
from video_pipeline.config.source import member_of, scheme_of
from video_pipeline.errors import UserError
from video_pipeline.video.access import Access

if TYPE_CHECKING:
    from video_pipeline.video.header import Header
    from video_pipeline.video.headers import HeaderReaders

logger = logging.getLogger(__name__)

BYTES_PER_SECOND = 1_000_000
"""The size of a file says nothing about a short segment of it, so a segment weighs no more than its
seconds times this: the 8 Mbit/s that YouTube recommends for uploads of 1080p at 24 to 30 frames a
second (support.google.com/youtube/answer/1722171)."""

FIRST_FILES = 100
"""A run is stopped only if all of so many first files are missing, or all if there are fewer."""

FEW_MISSING = 0.05
"""A share of all samples: if fewer files are missing, the folder is not wrong."""

STAT_THREADS = 32
"""On a network file system `stat` is nearly all waiting."""

_TOO_LONG = 1e8
"""Seconds; 3 years."""


def known_weight(raw: dict[str, Any], by: str, address: object = None) -> float:
    """The weight of a sample as far as its own fields tell; NaN if they do not.

    ``count``: 1. ``duration``: its seconds. ``size``: the most bytes that its segment weighs, or
    the ``size`` of a video at an ``address`` that is no local file, from a listing.
    """
    if by == "count":
        return 1.0
    begin, end = raw.get("video_start"), raw.get("video_end")
    if by == "size" and begin is None and end is None:
        size: Any = raw.get("size")
        is_listed = isinstance(address, str) and not _is_local(address)
        return float(size) if is_listed and type(size) is int and size > 0 else math.nan
    duration: Any = raw.get("duration")
    if type(duration) in (int, float) and 0 < duration < math.inf:
        end = duration if end is None else min(end, duration)
    if end is None:
        return math.nan
    seconds: float = end - (begin or 0)
    if not 0 < seconds < _TOO_LONG:  # The reader will report the mistake.
        return math.nan
    return seconds * BYTES_PER_SECOND if by == "size" else seconds


@dataclass
class MissingFiles:
    """The missing local files of pending samples."""

    looked_at: int = 0  # Files that were looked at, in the order of the input.
    count: int = 0  # Missing files.
    head: int = 0  # Missing files before the first that exists.
    first: str = ""  # The first missing file, an absolute path.

    def note(self, files: Sequence[str], sizes: np.ndarray) -> None:
        """Count missing files by the ``sizes`` of :func:`_sizes`."""
        missing = np.isnan(sizes)
        if self.head == self.looked_at:
            self.head += int(np.argmin(missing)) if not missing.all() else len(missing)
        if not self.first and missing.any():
            self.first = files[int(np.argmax(missing))]
        self.looked_at += len(files)
        self.count += int(missing.sum())

    def check(self, config: Config, samples: int) -> None:
        """Log how many files are missing; they become error records. ``samples``: the number of
        samples in the input.

        Raises :class:`UserError` if the folder seems to be wrong: the first :data:`FIRST_FILES` (or
        all, if there are fewer) are missing, and more than :data:`FEW_MISSING` of all samples.
        """
        if not self.count:
            return
        missing = (
            f"{self.count:,} of the {self.looked_at:,} files that pending samples name cannot be "
            f"found; the first: {self.first} ({_why(self.first)})"
        )
        is_few = self.count <= FEW_MISSING * samples or config.run.max_error_rate == 1
        is_whole_input = self.head == self.looked_at == samples
        if is_few or not (self.head >= FIRST_FILES or is_whole_input):
            logger.warning("%s. They become error records of stage read", missing)
            return
        root = config.data.video_root
        why = "that of data.input_jsonl" if root is None else str(root)
        raise UserError(
            f"{missing}. Relative paths are relative to {config.video_root} (data.video_root: "
            f"{why}). Nothing was started: fix data.video_root, or the paths in "
            f"{config.data.source.name} (`run.max_error_rate: 1` accepts them as error records)"
        )


class Weigher:
    """Looks at the files of samples: whether they exist, and what they weigh. Threads ask for
    sizes, processes for lengths of videos. Nothing is decoded or downloaded."""

    def __init__(self, data: Data, num_processes: int) -> None:
        self._data = data
        self._num_processes = num_processes
        self._threads = ThreadPoolExecutor(STAT_THREADS, thread_name_prefix="stat")
        self._headers: HeaderReaders | None = None
        self.missing = MissingFiles()
        self.looked_up = 0
        self.seconds = 0.0

    def __enter__(self) -> Weigher:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        if self._headers is not None:
            self._headers.close()

    def weigh(
        self, uris: Sequence[str], known: np.ndarray, wanted: np.ndarray, files: Sequence[str]
    ) -> np.ndarray:
        """The weights of the ``wanted`` (a mask) among some samples; NaN if a weight is not
        available. ``uris`` and ``files`` are those of a :class:`ScannedBlock`, ``known`` the
        results of :func:`known_weight`."""
        by_size, begun = self._data.balance == "size", time.monotonic()
        sizes = np.full(len(known), np.nan)
        # For each sample the file that must exist, or else the file that is weighed.
        paths = [file or (uri if by_size else "") for file, uri in zip(files, uris, strict=True)]
        local = [place for place in np.flatnonzero(wanted) if _is_local(paths[place])]
        if local:
            sizes[local] = self._sizes([paths[place] for place in local])
            needed = [place for place in local if files[place]]
            self.missing.note([files[place] for place in needed], sizes[needed])
        if by_size:
            weighed = [place for place in local if paths[place] == uris[place]]
            looked_up = sizes[weighed]
        else:
            unknown = np.flatnonzero(wanted & np.isnan(known))
            weighed = [place for place in unknown if _gives_header(uris[place])]
            looked_up = self._durations([uris[place] for place in weighed])
        weights = known.copy()
        # fmin gives the smaller one, or the only one that is known.
        weights[weighed] = np.fmin(known[weighed], looked_up)
        self.looked_up += len(weighed)
        self.seconds += time.monotonic() - begun
        return weights

    def _sizes(self, files: list[str]) -> np.ndarray:
        step = -(-len(files) // STAT_THREADS)
        slices = [files[begin : begin + step] for begin in range(0, len(files), step)]
        return np.concatenate(list(self._threads.map(_sizes, slices)))

    def _durations(self, files: list[str]) -> np.ndarray:
        if not files:
            return np.empty(0)
        if self._headers is None:
            from video_pipeline.video.headers import HeaderReaders

            self._headers = HeaderReaders(Access.of(self._data), self._num_processes)
        return np.array([_seconds(header) for header in self._headers.read(files)])


def _is_local(address: str) -> bool:
    return address != "" and not scheme_of(address) and member_of(address) is None


def _gives_header(address: str) -> bool:
    """Whether the header of a video is read to weigh it. Web servers are not asked: they may be
    slow, and not all give parts of a file."""
    return address != "" and scheme_of(address) not in ("http", "https")


def _why(file: str) -> str:
    """Why a file cannot be found."""
    try:
        os.stat(file)
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return str(error)
    return "it is there now"


def _sizes(files: list[str]) -> np.ndarray:
    """The size of each file in bytes, at least 1; NaN if there is no file."""
    sizes = np.full(len(files), np.nan)
    for place, file in enumerate(files):
        try:
            sizes[place] = max(os.stat(file).st_size, 1)
        except (OSError, ValueError):
            continue
    return sizes


def _seconds(header: Header | str) -> float:
    """The duration in a header, in seconds; NaN if it does not say it."""
    return math.nan if isinstance(header, str) else header.duration or math.nan
