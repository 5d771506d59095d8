"""Copies the output, and the files made from it, to the places in ``run.publish``.

Files that a place has already are not sent again, so a killed run goes on. The data comes first,
then the summary, and at last the checksums, in the format of ``sha256sum``: if they match,
everything has arrived.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

from video_pipeline.common import versions
from video_pipeline.common.faults import failure_of, is_environment_fault
from video_pipeline.common.files import write_text
from video_pipeline.common.hub import ask_hub
from video_pipeline.common.locks import waiting_lock
from video_pipeline.common.progress import Progress
from video_pipeline.config import Config
from video_pipeline.config.source import scheme_of, shown
from video_pipeline.publish.places import Place, Published, open_place
from video_pipeline.report.summary import read_summary
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import check_origin

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"train-\d+-of-\d+\.parquet")
"""Names of the Parquet files that export writes. The hub takes all of them for one dataset."""


def publish(config: Config, layout: Layout) -> None:
    """Copy the files of a finished run to each place, and write ``layout.receipt``.

    Raises:
        UserError: There is no output, it does not belong to the summary or to ``config``, or a
            place refuses it.
        EnvironmentFault: A place does not answer, or holds other bytes than those that were sent.
    """
    check_origin(read_summary(layout).get("origin", {}), config, layout.summary)
    has_parquet = "parquet" in config.run.formats
    published = []
    files_by_dataset: dict[str, list[Published]] = {}  # So that each is hashed once.
    # No export replaces the folder meanwhile.
    with waiting_lock(layout.dataset_lock, logger):
        for place in config.run.publish:
            # On the hub the card is that of the whole dataset.
            dataset = "" if scheme_of(place) == "hf" else f"{layout.dataset.name}/"
            if dataset not in files_by_dataset:
                files_by_dataset[dataset] = list(_files(layout, dataset if has_parquet else None))
            files = files_by_dataset[dataset]
            try:
                _bring(place, files, dataset, layout)
            except Exception as error:
                if not (isinstance(error, OSError | ValueError) or is_environment_fault(error)):
                    raise
                why = str(error).rstrip(".")
                raise failure_of(
                    error,
                    f"run.publish: {shown(place)}: {why}. What has arrived there stays; run the "
                    "same command again, and it sends what is missing",
                ) from error
            sent = [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in files]
            published.append({"place": place, "files": sent})
    receipt = {"version": versions.PUBLISHED, "published": published}
    write_text(layout.receipt, json.dumps(receipt, indent=2) + "\n")


def _files(layout: Layout, dataset: str | None) -> Iterator[Published]:
    """The files to publish, the summary last; ``dataset``: the folder of the Parquet files and
    their card, None if there are none."""
    if dataset is not None:
        for path in sorted(layout.dataset.rglob("*.parquet")):
            yield Published(dataset + path.relative_to(layout.dataset).as_posix(), path)
        yield Published(dataset + layout.card.name, layout.card)
    paths = (layout.output, layout.errors, layout.videos, layout.report)
    for path in (*paths, layout.summary):
        if path.exists():  # Only some runs have videos.
            yield Published(path.name, path)


def _bring(address: str, files: list[Published], dataset: str, layout: Layout) -> None:
    checksums = "".join(f"{file.sha256}  {file.name}\n" for file in files)
    write_text(layout.checksums, checksums)
    files = [*files, Published(layout.beside(".sha256").name, layout.checksums)]
    if scheme_of(address) == "hf":
        ask_hub(lambda: _send(open_place(address), address, files, dataset, layout), address)
    else:
        _send(open_place(address), address, files, dataset, layout)


def _send(place: Place, address: str, files: list[Published], dataset: str, layout: Layout) -> None:
    progress_file = layout.progress("publish")
    lacking = [file for file in files if not place.holds(file)]
    names = {file.name for file in files}
    stale = [name for name in _ours(place, dataset, layout) if name not in names]
    title = f"{layout.stem}, by video-pipeline"
    with Progress(progress_file, f"publish to {shown(address)}", "files", len(lacking)) as progress:
        for file in place.update(lacking, stale, title):
            logger.info("%s: %s has arrived (%d bytes)", shown(address), file.name, file.size)
            progress.advance()
    logger.info(
        "%s: %d of %d files sent, %d removed", shown(address), len(lacking), len(files), len(stale)
    )


def _ours(place: Place, dataset: str, layout: Layout) -> Iterator[str]:
    """The files at ``place`` that look like a part of this output, from any run."""
    for name in (f"{dataset}{layout.card.name}", layout.videos.name):
        if place.has(name):
            yield name
    for name in place.names(f"{dataset}data"):
        if _SHARD.fullmatch(name.removeprefix(f"{dataset}data/")):
            yield name
