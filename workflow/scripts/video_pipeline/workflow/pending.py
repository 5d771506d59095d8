"""Tells from small files whether an inference job has anything to infer. Snakemake asks before it
starts the job, which gets no GPU if it only writes its rank file.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from video_pipeline.common.files import read_object
from video_pipeline.journal.format import ATTEMPTS, REOPENS, attempt_prefix
from video_pipeline.run.layout import Layout


def needs_no_gpu(layout: Layout, rank: int) -> bool:
    """Whether the whole chunk of ``rank`` was done when split made it, or when a job later wrote
    its rank file, and no error was opened again since then. False if the files do not tell."""
    manifest, done_at = _read(layout.manifest)
    if not manifest:
        return False
    if manifest["rank_pending"][rank]:
        contents, done_at = _read(layout.contents(rank))
        if contents.get("split_id") != manifest["split_id"]:
            return False
    journal = layout.journal_now(manifest["journal"])
    return _newest_reopening(journal, _written_at(journal)) < done_at


def num_pending(layout: Layout, rank: int) -> int | None:
    """The number of samples that the job of ``rank`` has to infer. None if the files do not tell:
    the input was not split yet, or since then a job has begun or errors were opened again."""
    manifest, split_at = _read(layout.manifest)
    if not manifest:
        return None
    if needs_no_gpu(layout, rank):
        return 0
    journal = layout.journal_now(manifest["journal"])
    changed_at = _written_at(journal)
    if _newest_reopening(journal, changed_at) >= split_at or attempt_prefix(
        manifest["split_id"], rank
    ) in _attempts(journal, changed_at):
        return None
    pending: int = manifest["rank_pending"][rank]
    return pending


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON object in a file, and when it was written; an empty object if the file is missing,
    or damaged, which the jobs report."""
    written_at = _written_at(path)
    return _parsed(path, written_at), written_at


def _written_at(path: Path) -> int:
    """When a file, or the names in a folder, last changed; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@lru_cache(maxsize=16)
def _parsed(path: Path, written_at: int) -> dict[str, Any]:
    """The file as it was ``written_at``, parsed once: each of a thousand ranks asks for it."""
    return read_object(path)


@lru_cache(maxsize=16)
def _newest_reopening(journal: Path, changed_at: int) -> int:
    """When errors were last opened again; 0 if they never were. Looked up once for the folder as it
    was ``changed_at``."""
    return max(map(_written_at, journal.glob(f"{REOPENS}*")), default=0)


@lru_cache(maxsize=2)
def _attempts(journal: Path, changed_at: int) -> frozenset[str]:
    """The :func:`attempt_prefix` of each attempt in a folder."""
    names = (path.name.split(".", 3) for path in journal.glob(f"{ATTEMPTS}*"))
    return frozenset(".".join([*name[:3], ""]) for name in names)
