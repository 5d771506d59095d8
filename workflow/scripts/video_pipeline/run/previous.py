"""Keeps the output of the run before until the new one is there.

Snakemake removes the files of a rule before its job starts, and again if the job fails. Without
this, nothing is left after a run in which ``consolidate`` fails, because no sample was answered or
the disk is full. If ``split`` fails, because of a mistake in the settings, an output without its
chunks and its configuration would look unfinished.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from video_pipeline.run.layout import Layout


def keep_previous(layout: Layout) -> None:
    """Give the files of the output a second name, which Snakemake does not know. If the file system
    has no hard links, nothing is kept. Call this before the decisions of the new run are written.
    """
    if not layout.output.exists():
        return  # A run that was killed may have kept it.
    forget_previous(layout)
    for path in filter(Path.exists, [*layout.consolidated, *_of_split(layout)]):
        kept = _kept(layout, path)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept.hardlink_to(path)
        except OSError:
            return forget_previous(layout)


def restore_previous(layout: Layout) -> bool:
    """Restore what is gone after a failure; returns whether something was. If the chunks are new,
    the output is that of an earlier run as long as ``layout.previous`` exists."""
    has_chunks = layout.manifest.exists()
    if (layout.output.exists() and has_chunks) or not layout.previous.exists():
        forget_previous(layout)
        return False
    for path in layout.consolidated:
        kept = _kept(layout, path)
        if kept.exists() and not path.exists():
            path.hardlink_to(kept)
    if not has_chunks:
        for path in _of_split(layout):
            kept = _kept(layout, path)
            if kept.exists():
                kept.replace(path)
        forget_previous(layout)
    return True


def _of_split(layout: Layout) -> list[Path]:
    """The chunks, and the decisions that they come from."""
    chunks = map(layout.chunk, range(layout.num_shards))
    return [layout.config, layout.sharding, layout.order, *chunks, layout.manifest]


def _kept(layout: Layout, path: Path) -> Path:
    """The second name of ``path``."""
    return layout.previous / path.relative_to(layout.output.parent)


def forget_previous(layout: Layout) -> None:
    """Forget the output of the run before: a new one is there, or it was not touched."""
    shutil.rmtree(layout.previous, ignore_errors=True)
