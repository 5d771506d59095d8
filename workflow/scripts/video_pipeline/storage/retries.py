"""Retries after failures that may pass: a busy server, a connection that breaks off."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from video_pipeline.storage.errors import VideoReadError

ATTEMPTS = 6
"""Attempts in a row that may bring nothing new."""

FIRST_SECONDS = 0.5
"""The wait before the second attempt, at most. It doubles with each attempt."""

LONGEST_SECONDS = 60.0
"""The longest wait that a server may ask for (``Retry-After``)."""

PER_HOST = 8
"""Connections of a process to one host at the same time."""


class Unavailable(VideoReadError):
    """A failure that may pass. ``seconds``: after how long, if the server says it."""

    def __init__(self, message: str, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


class Host:
    """A host that all threads of this process ask: it limits how many ask at once, and keeps the
    pauses that the host asks for."""

    def __init__(self) -> None:
        self._connections = threading.BoundedSemaphore(PER_HOST)
        self._until = 0.0

    @contextmanager
    def connection(self) -> Iterator[None]:
        """One of the connections to it, once it may be asked again."""
        with self._connections:
            time.sleep(max(0.0, self._until - time.monotonic()))
            yield

    def spare(self, seconds: float) -> None:
        """Send it no request for so many seconds."""
        self._until = max(self._until, time.monotonic() + seconds)


class Patience:
    """Counts the failures in a row of one download, and waits after each, a little longer each
    time. The wait is partly random, so that not all downloads ask again together."""

    def __init__(self) -> None:
        self._failures = 0

    def reset(self) -> None:
        """Count from 0 again, because new bytes have come."""
        self._failures = 0

    def wait(self, error: Unavailable) -> None:
        """Wait until the next attempt; raises :class:`VideoReadError` if there is none."""
        self._failures += 1
        if self._failures == ATTEMPTS or error.seconds > LONGEST_SECONDS:
            raise VideoReadError(str(error))
        longest = FIRST_SECONDS * 2 ** (self._failures - 1)
        time.sleep(error.seconds + random.uniform(longest / 2, longest))


def seconds_of(retry_after: str | None) -> float:
    """The seconds that a header ``Retry-After`` says (RFC 9110, 10.2.3); 0 if it says nothing."""
    try:
        return float(Retry().parse_retry_after(retry_after or "0"))
    except (InvalidHeader, ValueError, OverflowError):  # A date may be out of range.
        return 0.0
