"""Quarantine: find the sample that kills the engine, and spare the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from video_pipeline.engine.base import EngineDead

if TYPE_CHECKING:
    from video_pipeline.chunks import Question
    from video_pipeline.journal import JournalWriter

QUARANTINE_DEATHS = 3
"""A sample that was in the engine at so many of its deaths is not tried again."""

SUSPECTS_DIVISOR = 16
"""After a death of the engine, the samples that were in it are tried after all others, and this
many times fewer of them at once; after a second death again: 256, 16, 1. So the third death has one
suspect only."""


class Round(NamedTuple):
    """Samples that are tried together.

    Attributes:
        positions: Their positions in the chunk.
        max_in_flight: How many requests may be in the engine at once.
        is_last: Whether this is the last round.
    """

    positions: Iterable[int]
    max_in_flight: int
    is_last: bool = False


class Quarantine:
    """Decides in which order samples are tried, and beside how many others.

    Samples without a suspicion go first. Then come those that were in the engine when it died, and
    at the end, alone, those that killed their decode process.
    """

    def __init__(self, deaths: Mapping[int, int], max_in_flight: int) -> None:
        """
        Args:
            deaths: By position in the chunk, at how many deaths of an engine a pending sample was
                in it.
            max_in_flight: How many requests may be in the engine at once.
        """
        self._deaths = deaths
        self._max_in_flight = max_in_flight
        self._crashed: list[int] = []
        self._is_last_round = False
        self._in_engine: dict[str, Question] = {}

    def rounds(self, pending: Iterable[int]) -> Iterator[Round]:
        """The rounds in which the samples at the positions ``pending`` are tried."""
        max_in_flight = self._max_in_flight
        yield Round((p for p in pending if p not in self._deaths), max_in_flight)
        for count in range(1, QUARANTINE_DEATHS):
            max_in_flight = max(1, max_in_flight // SUSPECTS_DIVISOR)
            yield Round([p for p, n in self._deaths.items() if n == count], max_in_flight)
        self._is_last_round = True
        yield Round(self._crashed, 1, is_last=True)

    def errors(self) -> dict[int, dict[str, str]]:
        """The ``__error`` of each sample that is not tried again, by position."""
        errors = {position: quarantine_error(count) for position, count in self._deaths.items()}
        return {position: error for position, error in errors.items() if error is not None}

    def try_again(self, position: int) -> bool:
        """Have a sample that killed its decode process tried once more, alone, in the last round.

        Returns:
            Whether that is still possible: not for a sample of the last round itself.
        """
        if not self._is_last_round:
            self._crashed.append(position)
        return not self._is_last_round

    @contextmanager
    def in_engine(self, name: str, question: Question, journal: JournalWriter) -> Iterator[None]:
        """The engine has the request ``name`` while the block runs. If the engine dies, the journal
        gets the requests that were in it."""
        self._in_engine[name] = question
        try:
            yield
        except EngineDead:
            self.note_death(journal)
            raise
        finally:
            self._in_engine.pop(name, None)

    @property
    def engine_is_empty(self) -> bool:
        """Whether no request is in the engine."""
        return not self._in_engine

    def note_death(self, journal: JournalWriter) -> None:
        """Write down, once, which requests were in the engine when it died."""
        in_engine, self._in_engine = self._in_engine, {}
        for question in in_engine.values():
            journal.engine_died(*question)


def quarantine_error(deaths: int) -> dict[str, str] | None:
    """The ``__error`` of a sample that was in the engine at so many deaths; None if it is tried
    again."""
    if deaths < QUARANTINE_DEATHS:
        return None
    message = f"it was in the engine {deaths} times when the engine died"
    return {"stage": "quarantine", "type": "EngineDead", "message": message}
