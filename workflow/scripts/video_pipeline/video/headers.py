"""Reads the headers of many videos, in processes that may die."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain

from video_pipeline.video.access import Access, limit_access
from video_pipeline.video.header import Header, read_header

_AT_ONCE = 16


class HeaderReaders:
    """Processes that read the headers of videos, until :meth:`close`."""

    def __init__(self, access: Access, num_processes: int, *, with_size: bool = False) -> None:
        """``with_size`` is that of :func:`read_header`."""
        self._access = access
        self._read_all = partial(_read_all, with_size=with_size)
        self._num_processes = num_processes
        self._processes: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the processes."""
        if self._processes is not None:
            self._processes.shutdown()

    def read(self, uris: Sequence[str]) -> list[Header | str]:
        """The header of each video, or why it cannot be read."""
        if not uris:
            return []
        if self._processes is None:
            self._processes = ProcessPoolExecutor(
                self._num_processes,
                multiprocessing.get_context("spawn"),
                initializer=limit_access,
                initargs=(self._access,),
            )
        slices = [uris[begin : begin + _AT_ONCE] for begin in range(0, len(uris), _AT_ONCE)]
        try:
            return list(chain.from_iterable(self._processes.map(self._read_all, slices)))
        except BrokenProcessPool:  # A file kills its reader. Halving the list finds it.
            self._processes = None
        if len(uris) == 1:
            return ["its reader died"]
        middle = len(uris) // 2
        return [header for half in (uris[:middle], uris[middle:]) for header in self.read(half)]


def _read_all(uris: Sequence[str], with_size: bool) -> list[Header | str]:
    headers: list[Header | str] = []
    for uri in uris:
        try:
            headers.append(read_header(uri, with_size=with_size))
        except Exception as error:  # The job meets the same error, and reports it.
            headers.append(str(error) or type(error).__name__)
    return headers
