"""The fetcher: a process that downloads what the next samples of a job will read.

Its files lie in the folder for temporary files (``TMPDIR``) and have no name, so that none is left
behind if a process is killed. Decode processes open them through ``/proc``. The limits of
:mod:`video_pipeline.storage.access` hold here, too. If the fetcher dies, decode processes download
the files themselves.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import BinaryIO, NoReturn

from video_pipeline.common.processes import limit_memory
from video_pipeline.config.source import is_row
from video_pipeline.storage.access import Access, limit_access
from video_pipeline.storage.blobs import save
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.fetched import Fetched, inode_of
from video_pipeline.storage.opening import open_blob

CONNECTIONS = 16
"""Downloads at the same time."""

LOOK_SECONDS = 1.0
"""How often the fetcher looks whether it is stuck."""

DISK_SHARE = 0.5
"""The part of the free disk space that it may take: jobs of other ranks may need it, too."""


class FetcherProcess:
    """The job's handle of a fetcher. ``(ticket, addresses)``, sent over ``pipe``, tells it what to
    fetch; without addresses it drops the files of that ticket. It sends back ``(ticket, results)``,
    with a :class:`Fetched` for each address."""

    def __init__(
        self, access: Access, max_bytes: float, seconds: float, memory_gb: float | None = None
    ) -> None:
        """
        Args:
            max_bytes: Bytes of files that it may hold, beside the rest of one video.
            seconds: How long one address may take.
            memory_gb: Memory that it may allocate; None: no limit.
        """
        self.pipe, theirs = Pipe()
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        with theirs:  # Closed here, so that its end of the pipe closes when it dies.
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.pipe.send((access, max_bytes, seconds, memory_gb))

    def stop(self) -> None:
        """End it, and with it its files."""
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def main() -> NoReturn:
    """Run as the fetcher, until the other end of its pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the job.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # A sample may be many images.
    pipe = Connection(int(sys.argv[1]))
    try:
        access, max_bytes, seconds, memory_gb = pipe.recv()
        limit_access(access)
        limit_memory(memory_gb)
        fetcher = _Fetcher(pipe, Room(max_bytes), access, seconds)
        while not fetcher.is_stuck():
            if pipe.poll(LOOK_SECONDS):
                fetcher.obey(*pipe.recv())
    except (EOFError, OSError):
        pass  # The job has ended.
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)  # Threads may still wait for a server.


class Room:
    """The room for files. Tickets get it in their order."""

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._taken: dict[int, int] = {}  # Bytes by ticket.
        self._under_way: set[int] = set()
        self._waiting: set[int] = set()
        self._waiting_with_bytes: set[int] = set()
        self._typical = 0.0  # Bytes of a file, mostly of the last ones.
        self._changed = threading.Condition()

    def enter(self, ticket: int) -> None:
        """Wait until there is probably room for one more."""
        with self._changed:
            self._waiting.add(ticket)
            try:
                self._changed.wait_for(lambda: ticket == min(self._waiting) and self._is_likely())
                self._under_way.add(ticket)
                self._taken[ticket] = 0
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def take(self, ticket: int, num_bytes: int) -> None:
        """Wait until there is room for bytes that have arrived. If no file is complete, nobody
        would make room: then the oldest download that waits here goes on."""
        with self._changed:
            self._waiting_with_bytes.add(ticket)
            try:
                self._changed.wait_for(lambda: self._fits(num_bytes) or self._is_first(ticket))
                self._taken[ticket] += num_bytes
            finally:
                self._waiting_with_bytes.remove(ticket)
                self._changed.notify_all()

    @property
    def is_waited_for(self) -> bool:
        """Whether downloads wait here, and may keep others waiting for a connection."""
        return bool(self._waiting_with_bytes)

    def finish(self, ticket: int) -> None:
        """Note that a download has ended; its bytes are still there."""
        with self._changed:
            self._under_way.discard(ticket)
            if num_bytes := self._taken.get(ticket):
                self._typical = (self._typical + num_bytes) / 2 if self._typical else num_bytes
            self._changed.notify_all()

    def leave(self, ticket: int) -> None:
        """Note that its bytes are gone."""
        with self._changed:
            self._taken.pop(ticket, None)
            self._changed.notify_all()

    def _is_likely(self) -> bool:
        coming = sum(max(0, self._typical - self._taken[ticket]) for ticket in self._under_way)
        return not self._taken or self._fits(coming + self._typical)

    def _is_first(self, ticket: int) -> bool:
        return ticket == min(self._waiting_with_bytes) and self._under_way == self._taken.keys()

    def _fits(self, num_bytes: float) -> bool:
        taken = sum(self._taken.values())
        free = shutil.disk_usage(tempfile.gettempdir()).free
        return taken + num_bytes <= min(self._max_bytes, DISK_SHARE * (free + taken))


class _Fetcher:
    def __init__(self, pipe: Connection, room: Room, access: Access, seconds: float) -> None:
        self._pipe = pipe
        self._room = room
        self._access = access
        self._seconds = seconds
        self._files: dict[int, list[BinaryIO]] = {}
        self._until: dict[int, float] = {}  # When the downloads must be done, by ticket.
        self._sending = threading.Lock()
        self._threads = ThreadPoolExecutor(CONNECTIONS)
        # Rows are read forwards (storage/rows.py), so one thread must read them in order.
        self._row_thread = ThreadPoolExecutor(1)

    def obey(self, ticket: int, addresses: tuple[str, ...]) -> None:
        if not addresses:
            for file in self._files.pop(ticket, ()):
                file.close()
            self._room.leave(ticket)
        elif any(is_row(address) for address in addresses):
            self._row_thread.submit(self._fetch, ticket, addresses)
        else:
            self._threads.submit(self._fetch, ticket, addresses)

    def is_stuck(self) -> bool:
        """Whether a download is long overdue and does not end: its server sends a byte now and
        then. No thread can be stopped, but the process can."""
        latest = time.monotonic() - self._seconds
        is_late = any(until < latest for until in list(self._until.values()))
        return is_late and not self._room.is_waited_for

    def _fetch(self, ticket: int, addresses: tuple[str, ...]) -> None:
        self._files[ticket] = []
        results = {}
        # Any other error happens again where the file is read, and is reported there.
        with contextlib.suppress(Exception):
            self._room.enter(ticket)
            for address in addresses:
                with contextlib.suppress(Exception):
                    results[address] = self._fetched(ticket, address)
        self._until.pop(ticket, None)
        self._room.finish(ticket)
        with self._sending:
            self._pipe.send((ticket, results))

    def _fetched(self, ticket: int, address: str) -> Fetched:
        self._until[ticket] = time.monotonic() + self._seconds

        def reserve(num_bytes: int) -> None:
            left = self._until.pop(ticket) - time.monotonic()  # Waiting for room does not count.
            if left < 0:
                raise TimeoutError
            self._room.take(ticket, num_bytes)
            self._until[ticket] = time.monotonic() + left

        try:
            blob = open_blob(address, self._access)
            file = save(blob, self._access.max_download_bytes, reserve)
        except VideoReadError as error:
            if isinstance(error.__cause__, OSError):  # The disk is full: later it may not be.
                raise
            return Fetched(error=str(error))
        self._files[ticket].append(file)
        return Fetched(f"/proc/{os.getpid()}/fd/{file.fileno()}", inode_of(file))
