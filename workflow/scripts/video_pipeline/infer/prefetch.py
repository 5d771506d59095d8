"""Downloads remote videos ahead of the decode processes, which then only decode."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from video_pipeline.config import Config
from video_pipeline.decode.preparing import ChunkSamples
from video_pipeline.storage.access import Access
from video_pipeline.storage.fetched import Fetched
from video_pipeline.storage.fetcher import FetcherProcess
from video_pipeline.storage.opening import is_remote

logger = logging.getLogger(__name__)

AHEAD = 64
"""How many samples may wait for their files, or, with their files, for a decode process."""

READY_SHARE = 0.25
"""Bytes of fetched files, as a share of ``data.max_ready_gb``."""

MOST_STARTS = 3
"""After so many fetchers have died, nothing is fetched ahead any more."""

MOST_UNUSED = 8
"""After so many samples in a row that did not ask for their files, none is fetched ahead."""


@dataclass(eq=False)
class Copy:
    """Files of the addresses of one or more samples, such as the windows of a video.

    Attributes:
        files: The result for each address that the fetcher has tried.
        users: The number of samples that need them.
    """

    addresses: tuple[str, ...]
    ticket: int
    fetcher: FetcherProcess
    users: int = 0
    files: Mapping[str, Fetched] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Prefetcher:
    """Fetches the files that the samples of a chunk will read, in order.

    Attributes:
        waiting: Makes the context in which it waits for the next file.
    """

    def __init__(self, config: Config, samples: ChunkSamples, num_processes: int) -> None:
        """``num_processes``: the number of decode processes. Until one of them has asked for a
        file, no more is fetched than they would fetch themselves."""
        self.waiting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
        self._config = config
        self._samples = samples
        self._ahead = num_processes
        self._starts = self._unused = 0
        self._fetcher: FetcherProcess | None = None
        self._tickets = 0
        self._copies: dict[tuple[str, ...], Copy] = {}
        self._by_ticket: dict[int, Copy] = {}

    async def ready(self, positions: Iterable[int]) -> AsyncIterator[tuple[int, Copy | None]]:
        """Yield each of ``positions`` in the chunk when its files have arrived, with the files;
        None if nothing is fetched for it. :meth:`release` takes the files back."""
        order = iter(positions)
        under_way: set[asyncio.Task[tuple[int, Copy]]] = set()
        while True:
            while len(under_way) < self._ahead and (position := next(order, None)) is not None:
                copy = self._begin(position)
                if copy is None:
                    for task in sorted((t for t in under_way if t.done()), key=_position):
                        under_way.remove(task)
                        yield task.result()
                    yield position, None
                else:
                    under_way.add(asyncio.create_task(_arrival(position, copy)))
            if not under_way:
                return
            with self.waiting():
                arrived, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            first = min(arrived, key=_position)
            under_way.remove(first)
            yield first.result()

    def release(self, copy: Copy | None, *, used: bool | None) -> None:
        """Note that a sample needs its files no more. ``used``: whether it asked for them; None if
        that is not known."""
        if copy is None:
            return
        if used:
            self._ahead, self._unused = AHEAD, 0
        elif used is False:
            self._unused += 1
            if self._unused == MOST_UNUSED:
                logger.info("nothing is fetched ahead: the dataset does not ask for it")
        copy.users -= 1
        if not copy.users:
            self._forget(copy)
            if copy.done.is_set() and copy.fetcher is self._fetcher:
                self._send(copy.ticket, ())

    def stop(self) -> None:
        """End the fetcher."""
        if self._fetcher is not None:
            self._end()

    def _begin(self, position: int) -> Copy | None:
        """Begin to fetch the files of the sample at ``position``; None if they are not remote."""
        is_over = self._fetcher is None and self._starts == MOST_STARTS
        if is_over or self._unused >= MOST_UNUSED:
            return None
        video = self._samples[position]["__video_uri"]
        videos = video if isinstance(video, list) else [video]
        addresses = tuple(dict.fromkeys(v for v in videos if isinstance(v, str) and is_remote(v)))
        if not addresses:
            return None
        copy = self._copies.get(addresses)
        if copy is None or any(file.error for file in copy.files.values()):
            try:
                fetcher = self._fetcher or self._start()
            except OSError as error:  # It could not start, or died at once.
                logger.warning("nothing is fetched ahead of this sample: %s", error)
                return None
            self._tickets += 1
            copy = Copy(addresses, self._tickets, fetcher)
            self._copies[addresses] = self._by_ticket[copy.ticket] = copy
            self._send(copy.ticket, addresses)
        copy.users += 1
        return copy

    def _start(self) -> FetcherProcess:
        data = self._config.data
        max_bytes = READY_SHARE * data.max_ready_gb * 1e9
        self._starts += 1
        self._fetcher = FetcherProcess(
            Access.of(data), max_bytes, data.sample_timeout_s, data.worker_memory_gb
        )
        asyncio.get_running_loop().add_reader(self._fetcher.pipe.fileno(), self._receive)
        return self._fetcher

    def _send(self, ticket: int, addresses: tuple[str, ...]) -> None:
        assert self._fetcher is not None
        with contextlib.suppress(OSError):  # It died just now: _receive sees that.
            self._fetcher.pipe.send((ticket, addresses))

    def _receive(self) -> None:
        assert self._fetcher is not None
        try:
            ticket, files = self._fetcher.pipe.recv()
        except (EOFError, OSError):
            is_last = self._starts == MOST_STARTS
            outcome = "it was the last one" if is_last else "another one is started"
            logger.warning("the process that fetches videos ahead died; %s", outcome)
            self._end()
            return
        copy = self._by_ticket[ticket]
        copy.files = files
        copy.done.set()

    def _end(self) -> None:
        """End the fetcher. Decode processes download its files, and those under way, themselves."""
        assert self._fetcher is not None
        with contextlib.suppress(RuntimeError):  # The loop may be closed.
            asyncio.get_running_loop().remove_reader(self._fetcher.pipe.fileno())
        self._fetcher.stop()
        self._fetcher = None
        for copy in list(self._by_ticket.values()):
            self._forget(copy)
            copy.done.set()

    def _forget(self, copy: Copy) -> None:
        self._by_ticket.pop(copy.ticket, None)
        if self._copies.get(copy.addresses) is copy:
            del self._copies[copy.addresses]


def _position(task: asyncio.Task[tuple[int, Copy]]) -> int:
    return task.result()[0]


async def _arrival(position: int, copy: Copy) -> tuple[int, Copy]:
    await copy.done.wait()
    return position, copy
