"""Keeps jobs away from an output that another process still writes."""

from __future__ import annotations

import time

from video_pipeline.common.locks import describe_holder, is_locked
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout

GRACE_SECONDS = 10.0
"""The jobs of a Snakemake that was killed end within this time."""


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
