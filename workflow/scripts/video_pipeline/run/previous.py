"""Keeps the output of the run before until the new one is there.

Snakemake removes the files of a rule before its job starts, and again if the job fails. Without
this, nothing is left after a run in which ``consolidate`` fails, because no sample was answered or
the disk is full.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from video_pipeline.run.layout import Layout


def keep_previous(layout: Layout) -> None:
    """Give the files of the output a second name, which Snakemake does not know. If the file system
    has no hard links, nothing is kept."""
    if not layout.output.exists():
        return  # A run that was killed may have kept it.
    forget_previous(layout)
    layout.previous.mkdir(parents=True)
    for path in filter(Path.exists, layout.consolidated):
        try:
            (layout.previous / path.name).hardlink_to(path)
        except OSError:
            return forget_previous(layout)


def restore_previous(layout: Layout) -> bool:
    """Restore the output if it is gone, after a failure; returns whether it was gone. It is then
    that of an earlier run, as long as ``layout.previous`` exists."""
    if layout.output.exists() or not layout.previous.exists():
        forget_previous(layout)
        return False
    for path in layout.consolidated:
        kept = layout.previous / path.name
        if kept.exists() and not path.exists():
            path.hardlink_to(kept)
    return True


def forget_previous(layout: Layout) -> None:
    """Forget the output of the run before: a new one is there, or it was not touched."""
    shutil.rmtree(layout.previous, ignore_errors=True)
