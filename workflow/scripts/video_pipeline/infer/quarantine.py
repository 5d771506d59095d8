"""Quarantine: finds the sample that kills the engine, and spares the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from video_pipeline.engine.base import EngineDead
from video_pipeline.journal.writer import JournalWriter
from video_pipeline.run.chunks import Question

QUARANTINE_DEATHS = 3
"""A sample that was in the engine at so many deaths of the engine is not tried again."""

SUSPECTS_DIVISOR = 16
"""After a death of the engine, the samples that were in it are tried after all others, with this
many times fewer requests at once; after a second death again: 256, 16, 1. So the third death has
only one suspect."""


class Quarantine:
    """Decides in which order samples are tried, and with how many others at once.
    ``is_last_round``: whether :meth:`rounds` has come to its last round."""

    def __init__(self, deaths: Mapping[int, int]) -> None:
        """``deaths`` are those of :class:`Shard`."""
        self.is_last_round = False
        self._deaths = deaths
        self._crashed: list[int] = []
        self._in_engine: dict[str, Question] = {}

    def rounds(
        self, pending: Iterable[int], max_in_flight: int
    ) -> Iterator[tuple[Iterable[int], int]]:
        """The rounds in which the samples at the positions ``pending`` are tried: positions, and
        how many requests may be in the engine at once. Samples without a suspicion go first. Then
        come those that were in the engine when it died. At the end, one at a time, come those that
        killed their decode process."""
        yield (position for position in pending if position not in self._deaths), max_in_flight
        for count in range(1, QUARANTINE_DEATHS):
            max_in_flight = max(1, max_in_flight // SUSPECTS_DIVISOR)
            yield [p for p, deaths in self._deaths.items() if deaths == count], max_in_flight
        self.is_last_round = True
        yield self._crashed, 1

    def try_again(self, position: int) -> bool:
        """Try a sample that killed its decode process again in the last round. Returns False if
        this is the last round."""
        if not self.is_last_round:
            self._crashed.append(position)
        return not self.is_last_round

    @contextmanager
    def in_engine(self, name: str, question: Question, journal: JournalWriter) -> Iterator[None]:
        """Note that the engine has the request ``name`` while the block runs. If the engine dies,
        the journal gets the requests that were in it."""
        self._in_engine[name] = question
        try:
            yield
        except EngineDead as death:
            self.note_death(journal, str(death))
            raise
        finally:
            self._in_engine.pop(name, None)

    @property
    def engine_is_empty(self) -> bool:
        """Whether no request is in the engine."""
        return not self._in_engine

    def note_death(self, journal: JournalWriter, cause: str) -> None:
        """Note in the journal, once, which requests were in the engine when it died, and why."""
        in_engine, self._in_engine = self._in_engine, {}
        for question in in_engine.values():
            journal.engine_died(*question, cause)


def quarantine_error(deaths: int, cause: str | None) -> dict[str, str]:
    """The ``__error`` of a sample after so many deaths of the engine, the last by ``cause``."""
    message = f"it was in the engine {deaths} times when the engine died"
    if cause:
        message += f", the last time of: {cause}"
    return {"stage": "quarantine", "type": "EngineDead", "message": message}
