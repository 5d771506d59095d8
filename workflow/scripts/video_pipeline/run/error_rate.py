"""The error rate of a chunk: how many of its finished samples failed, and how many may fail."""

from __future__ import annotations

from dataclasses import dataclass, field

from video_pipeline.errors import UserError

FIRST_LOOK = 20
"""Fewer failures than this are never too many."""

FIRST_SAMPLES = 1000
"""So many samples of a chunk are judged together: the bad files of a folder may come first."""


@dataclass
class ErrorRate:
    """Failures among the finished samples of a chunk. A high rate means that the storage or the
    engine is at fault."""

    limit: float  # run.max_error_rate.
    samples: int = 0  # Of the chunk.
    finished: int = 0  # Failed samples included.
    failed: int = 0  # In any stage but parse.
    unparsed: int = 0  # In parse. They stop no run, because the journal has their answers.
    last_unparsed: dict[str, str] = field(default_factory=dict)  # Its __error.
    _last: dict[str, str] = field(default_factory=dict)

    def count(self, error: dict[str, str] | None = None) -> None:
        """Count one finished sample, with its ``__error`` if it failed."""
        self.finished += 1
        if error is None:
            return
        if error["stage"] == "parse":
            self.unparsed += 1
            self.last_unparsed = error
        else:
            self.failed += 1
            self._last = error

    def exceeded(self, under_way: int = 0) -> bool:
        """Whether there are at least :data:`FIRST_LOOK` failures, and more than the limit allows
        among the finished samples, or among the first :data:`FIRST_SAMPLES` of the chunk.

        ``under_way``: samples that were read and wait for their answer. They count as not failed,
        because a file that cannot be read fails at once and an answer takes its time.
        """
        judged = max(self.finished + under_way, min(self.samples, FIRST_SAMPLES))
        return self.failed >= FIRST_LOOK and self.failed > self.limit * judged

    def check(self, rank: int, reopened: int = 0, under_way: int = 0) -> None:
        """Raise :class:`UserError` about ``rank`` if the rate is :meth:`exceeded`. ``reopened``: so
        many of its failures are open again."""
        if not self.exceeded(under_way):
            return
        details = ["the last: {stage}: {type}: {message}".format(**self._last)]
        if self.unparsed:
            details.append(f"not counted: {self.unparsed} that failed in parse")
        fates = [f"{reopened} failures to read are tried again"] if reopened else []
        if (kept := self.failed - reopened) > 0:
            fates.append(f"{kept} failures stay until `video-pipeline retry` opens them")
        raise UserError(
            f"rank {rank}: {self.failed} of the {self.finished} samples that are finished (of "
            f"{self.samples}) failed, more than run.max_error_rate: {self.limit:g} allows; "
            f"{'; '.join(details)}. Fix the cause, or raise run.max_error_rate to accept failures, "
            f"and run again: {', '.join(fates)}"
        )
