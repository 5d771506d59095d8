"""The manifest: the results of split, which later jobs rely on."""

from __future__ import annotations

import json
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video_pipeline.common import versions
from video_pipeline.common.files import EMPTY, Seal
from video_pipeline.config import Config
from video_pipeline.errors import SPLIT_AGAIN, UserError
from video_pipeline.journal.format import ATTEMPTS, attempt_prefix
from video_pipeline.journal.index import JournalIndex, read_index
from video_pipeline.run.chunks import Chunk, not_of_this_split, read_lines
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import check_origin

logger = logging.getLogger(__name__)


@dataclass
class Manifest:
    """The results of split. Infer and consolidate trust them."""

    split_id: str  # a part of the names of the journal files
    num_shards: int
    task: str
    journal: str  # the folder, relative to the working directory
    settings: str  # digest of the settings that the journal stands for, without the dataset
    commit: str | None = None  # of a model of the hub
    origin: dict[str, Any] = field(default_factory=dict)  # what the samples come from
    lines: int = 0  # of the input that are not blank
    samples: int = 0  # distinct ones
    duplicates: int = 0  # lines that repeat an earlier sample
    left_out: int = 0  # records without an answer, of an earlier run, unless they are the samples
    dropped: int = 0  # lines for which data.where does not hold
    unknown: int = 0  # of these: because a field is missing or null
    left_out_records: int = 0  # of distinct samples that are not asked about, in the output
    pending: int = 0  # samples that were still to be inferred
    rank_samples: list[int] = field(default_factory=list)
    rank_pending: list[int] = field(default_factory=list)
    rank_failed: list[int] = field(default_factory=list)  # that have an error record already
    journal_files: list[str] = field(default_factory=list)  # that split has read
    balance: dict[str, Any] = field(default_factory=dict)  # how even the pending samples are spread
    expanded: bool = False  # a line of the input may stand for several samples
    with_videos: bool = True  # the dataset reads videos
    sample_fields: list[str] = field(default_factory=list)  # that the dataset reads
    order: Seal = EMPTY
    left_out_seal: Seal = EMPTY
    chunks: list[Seal] = field(default_factory=list)
    version: int = versions.CHUNKS  # of the manifest, the order and the chunks

    @property
    def counts(self) -> dict[str, int]:
        """Counts of the lines of the input, for summaries."""
        return {
            "input_lines": self.lines,
            "distinct": self.samples,
            "duplicates": self.duplicates,
            "left_out": self.left_out,
            "dropped": self.dropped,
        }

    def read_index(self, rank: int | None = None) -> JournalIndex:
        """The index of what the journal says about the chunk of ``rank`` (None: about all chunks)
        beyond what split has read: the attempts on these chunks, and files that came later (say,
        copied from another machine)."""
        known, ours = frozenset(self.journal_files), f"{ATTEMPTS}{self.split_id}."
        index = read_index(
            Path(self.journal),
            ours if rank is None else attempt_prefix(self.split_id, rank),
            lambda name: name not in known and not name.startswith(ours),
        )
        gone = sorted(known.difference(index.files))
        if gone:
            logger.warning(
                "%s: %d file(s) are gone since the input was split, such as %s; what only they "
                "held counts as missing",
                self.journal,
                len(gone),
                gone[0],
            )
        return index

    def open_chunk(self, layout: Layout, rank: int) -> Chunk:
        """The chunk of ``rank``. Raises :class:`UserError` if it is not what split wrote."""
        return Chunk(layout.chunk(rank), self.chunks[rank])

    def check_chunk(self, layout: Layout, rank: int) -> None:
        """Raise :class:`UserError` if the chunk of ``rank`` is not what split wrote."""
        if not self.chunks[rank].fits(layout.chunk(rank)):
            raise not_of_this_split(layout.chunk(rank))

    def read_order(self, layout: Layout) -> array[int]:
        """The rank of each distinct sample, in input order; the number of ranks for a sample that
        is left out. Raises :class:`UserError` if the file is not what split wrote."""
        if not self.order.fits(layout.order):
            raise not_of_this_split(layout.order)
        return array("I", layout.order.read_bytes())

    def read_left_out(self, layout: Layout) -> Iterator[bytes]:
        """The records of the samples that are left out, one a line, in input order. Raises
        :class:`UserError` if they are not what split wrote."""
        if not self.left_out_seal.fits(layout.left_out):
            raise not_of_this_split(layout.left_out)
        return read_lines(layout.left_out, self.num_shards + 1)

    @classmethod
    def of(cls, config: Config, layout: Layout) -> Manifest:
        """The manifest of the chunks in ``layout``.

        Raises :class:`UserError` if ``config`` asks for other chunks, or there are none yet.
        """
        manifest = cls.read(layout)
        check_origin(manifest.origin, config, layout.manifest)
        return manifest

    @classmethod
    def read(cls, layout: Layout) -> Manifest:
        """Read ``layout.manifest``.

        Raises :class:`UserError` if the input was not split yet, or not by this version.
        """
        path = layout.manifest
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            versions.check_version(path, values.get("version"), versions.CHUNKS)
            if values.get("version") != versions.CHUNKS:
                raise UserError(
                    f"{path}: written by an earlier version of video-pipeline; {SPLIT_AGAIN}"
                )
            chunks = [Seal(*seal) for seal in values["chunks"]]
            seals = {name: Seal(*values[name]) for name in ("order", "left_out_seal")}
            values["journal"] = str(layout.journal_now(values["journal"]))
            return cls(**{**values, **seals, "chunks": chunks})
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: the input was not split into these chunks"
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise not_of_this_split(path) from None
