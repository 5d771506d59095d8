"""Tells which processes still write an output, and keeps jobs away from it."""

from __future__ import annotations

import time

from video_pipeline.common.locks import describe_holder, holder_lives, is_locked
from video_pipeline.common.progress import duration
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout

GRACE_SECONDS = 10.0
"""The jobs of a Snakemake that was killed end within this time."""

SILENT_SECONDS = 60.0
"""A job writes its statistics every 5 s. If it has not for so long, it is probably gone."""


def why_silent(layout: Layout, rank: int, updated_at: float) -> str:
    """Why the job of ``rank`` is not at work, although it has not said that it ended; empty if it
    is at work. ``updated_at``: when it last wrote its statistics."""
    if not holder_lives(layout.lock(rank)):
        return "its process was stopped"
    seconds = time.time() - updated_at
    return f"no sign of life for {duration(seconds)}" if seconds > SILENT_SECONDS else ""


def refuse_live_writers(layout: Layout, *, of_other_shardings: bool = False) -> None:
    """Raise :class:`UserError` if a process infers into this output and does not end soon.
    ``of_other_shardings``: only if it does so for another number of shards."""
    deadline = time.monotonic() + GRACE_SECONDS
    for lock in layout.all_locks:
        if of_other_shardings and lock.parent == layout.chunks:
            continue
        while is_locked(lock):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{layout.output} is still being written by {describe_holder(lock)} "
                    f"({lock.parent.name}, {lock.stem}): wait for it or stop it, then run again"
                )
            time.sleep(0.1)
