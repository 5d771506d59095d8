"""Split: check the input, find what is done, and give each rank its chunk."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import time
import uuid
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson

from video_pipeline import versions
from video_pipeline.balance import (
    BATCH,
    Balance,
    MissingFiles,
    Weigher,
    deal,
    sorted_with_positions,
)
from video_pipeline.budget import check_budget_of_model
from video_pipeline.changes import JournalSettings, consequences
from video_pipeline.chunks import Chunk, ChunkEntry, finished_line, not_of_this_split
from video_pipeline.config import Config
from video_pipeline.errors import SPLIT_AGAIN, UserError
from video_pipeline.files import (
    EMPTY,
    Seal,
    make_folder,
    remove_leftovers,
    sync_folder,
    sync_tree,
    write_text,
)
from video_pipeline.hub import known_commit, resolve_commit
from video_pipeline.identity import content_key, fingerprint, settings_digest, settings_of
from video_pipeline.journal import (
    ATTEMPTS,
    NO_RECORD,
    JournalIndex,
    attempt_prefix,
    count_answers,
    location_at,
    read_index,
)
from video_pipeline.layout import Layout
from video_pipeline.locks import describe_holder, is_locked
from video_pipeline.origin import check_origin, origin_of
from video_pipeline.processes import job_processes
from video_pipeline.progress import Progress
from video_pipeline.samples import BadLines
from video_pipeline.scanning import Reading, ScannedBlock, scan
from video_pipeline.tasks.base import Task
from video_pipeline.tasks.registry import load_task

logger = logging.getLogger(__name__)

LARGE_INPUT_BYTES = 10_000_000
"""What split holds matters for an input larger than this; a smaller one is split the sooner."""

GRACE_SECONDS = 10.0
"""The jobs of a Snakemake that was killed end within this time."""


@dataclass
class Manifest:
    """What split did; the word of honour between split, infer and consolidate.

    Attributes:
        split_id: Names this split; part of the names of the journal files.
        num_shards: Chunks, one for each rank.
        task: Name of the task.
        journal: Folder of the journal, relative to the working directory.
        settings: Digest of the settings that the journal stands for, without the dataset.
        commit: Of the model, where it is one of the hub.
        origin: What the samples come from, see :func:`video_pipeline.origin.origin_of`.
        lines: Lines of the input that are not blank.
        samples: Distinct samples.
        duplicates: Lines that repeat an earlier sample.
        left_out: Error records of an earlier run's output, unless they are the samples.
        pending: Samples that were still to be inferred.
        rank_samples: Samples of each rank.
        rank_pending: Pending samples of each rank.
        journal_files: Files of the journal that split has read.
        balance: How even the pending samples are spread, see :class:`Balance`.
        expanded: Whether a line of the input may stand for several samples.
        with_videos: Whether the dataset reads videos.
        sample_fields: Fields of a sample that the dataset reads, beside the messages.
        order: What the file of the order holds.
        chunks: What the chunk of each rank holds.
        version: Of the manifest, the order and the chunks.
    """

    split_id: str
    num_shards: int
    task: str
    journal: str
    settings: str
    commit: str | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    lines: int = 0
    samples: int = 0
    duplicates: int = 0
    left_out: int = 0
    pending: int = 0
    rank_samples: list[int] = field(default_factory=list)
    rank_pending: list[int] = field(default_factory=list)
    journal_files: list[str] = field(default_factory=list)
    balance: dict[str, Any] = field(default_factory=dict)
    expanded: bool = False
    with_videos: bool = True
    sample_fields: list[str] = field(default_factory=list)
    order: Seal = EMPTY
    chunks: list[Seal] = field(default_factory=list)
    version: int = versions.CHUNKS

    @property
    def counts(self) -> dict[str, int]:
        """What became of the lines of the input, for summaries."""
        return {
            "input_lines": self.lines,
            "distinct": self.samples,
            "duplicates": self.duplicates,
            "left_out": self.left_out,
        }

    def read_index(self, rank: int | None = None) -> JournalIndex:
        """What the journal says about the chunk of ``rank`` (None: about all chunks) beyond what
        split has read: the attempts on these chunks, and files that are there since (say, copied
        from another machine)."""
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

    def read_order(self, layout: Layout) -> array:
        """The rank of each distinct sample, in input order.

        Raises :class:`UserError` if that is not what split wrote.
        """
        if not self.order.fits(layout.order):
            raise not_of_this_split(layout.order)
        return array("I", layout.order.read_bytes())

    @classmethod
    def of(cls, config: Config, layout: Layout) -> Manifest:
        """The manifest of the chunks in ``layout``, which were made as ``config`` says.

        Raises :class:`UserError` if they were not, or the input was not split yet.
        """
        manifest = cls.read(layout.manifest)
        check_origin(manifest.origin, config, layout.manifest)
        return manifest

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises :class:`UserError` if the input was not split yet, or not by this version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            versions.check_version(path, values.get("version"), versions.CHUNKS)
            if values.get("version") != versions.CHUNKS:
                raise UserError(
                    f"{path}: written by an earlier version of video-pipeline; {SPLIT_AGAIN}. "
                    "Nothing is inferred twice"
                )
            chunks = [Seal(*seal) for seal in values["chunks"]]
            return cls(**{**values, "order": Seal(*values["order"]), "chunks": chunks})
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: the input was not split into these chunks"
            ) from None
        except (ValueError, LookupError, TypeError, AttributeError):
            raise not_of_this_split(path) from None


def split(config: Config, layout: Layout, run_id: str = "", num_processes: int = 1) -> Manifest:
    """Split the input into ``layout.num_shards`` chunks and write the manifest.

    Pending samples are balanced (:mod:`video_pipeline.balance`), finished ones are dealt out
    evenly; each chunk stays in input order. On bad input nothing is written. An input of more than
    one block is scanned in ``num_processes`` processes.

    Raises :class:`UserError` for bad lines, for a configuration that cannot work, and while
    another process writes to the same output.
    """
    task = load_task(config)
    refuse_live_writers(layout)
    with ExitStack() as stack:
        if num_processes > 1 or config.data.balance == "duration":
            stack.enter_context(job_processes())
        progress = stack.enter_context(Progress(layout.progress("split"), "split", "lines"))
        return _split(config, layout, task, run_id, num_processes, progress)


def _split(
    config: Config,
    layout: Layout,
    task: Task,
    run_id: str,
    num_processes: int,
    progress: Progress,
) -> Manifest:
    commit = resolve_commit(config, layout)
    if num_processes > 1 and _is_large(config.data.input_jsonl):
        # torch stays in a process of its own: it would be half of what this one holds
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            stands_for, reading = pool.submit(_look_at_dataset, config, layout).result()
    else:
        stands_for, reading = _look_at_dataset(config, layout)
    journal = stands_for.folder(layout, run_id)
    earlier = None if run_id else JournalSettings.last(layout)
    if reading.needs_video:
        check_budget_of_model(config)
    index = read_index(journal)
    manifest = Manifest(
        split_id=uuid.uuid4().hex[:12],
        num_shards=layout.num_shards,
        task=task.name,
        journal=str(journal),
        settings=settings_digest(stands_for.settings),
        commit=commit,
        origin=origin_of(config),
        journal_files=index.files,
        expanded=reading.expands,
        with_videos=reading.needs_video,
        sample_fields=list(reading.sample_fields),
    )
    scratch = layout.split_scratch
    shutil.rmtree(scratch, ignore_errors=True)  # of a split that was killed
    scratch.mkdir(parents=True)
    try:
        table = Table(scratch / "table")
        bad, balance = BadLines(), Balance(config.data.balance)
        counting = (manifest, bad, balance, progress)
        missing = _fill(table, config, reading, index, num_processes, *counting)
        if 0 < manifest.left_out == manifest.lines:
            logger.info("%s: all records are failed samples: run them", config.data.input_jsonl)
            progress.advance(-manifest.lines)
            missing = _fill(
                table, config, reading, index, num_processes, *counting, with_failed=True
            )
        files = index.indexed
        del index  # the arrays that follow take its room
        is_duplicate = _find_duplicates(table, config, bad)
        bad.raise_any(config.data.input_jsonl)
        if origin_of(config)["files"] != manifest.origin["files"]:
            raise UserError(
                f"{config.data.input_jsonl.absolute()}, a plugin or a prompt file has changed "
                "while the input was split; run again"
            )
        missing.check(config, len(is_duplicate) - int(is_duplicate.sum()))
        ranks = _ranks(table, is_duplicate, manifest.num_shards, balance)
        _write_chunks(table, ranks, files, manifest, scratch, layout)
        order = ranks[~is_duplicate]
        order.tofile(scratch / layout.order.name)
        manifest.order = EMPTY.extended(order.view(np.uint8))
        manifest.duplicates = int(is_duplicate.sum())
        manifest.samples, manifest.pending = sum(manifest.rank_samples), sum(manifest.rank_pending)
        manifest.balance = balance.as_dict()
        table.remove()
        sync_tree(scratch)
        _remove_earlier(layout)
        make_folder(layout.chunks)
        layout.remove_leftovers()
        if journal.is_dir():
            remove_leftovers(journal)
        for entry in sorted(scratch.iterdir()):
            os.replace(entry, layout.chunks / entry.name)
        sync_folder(layout.chunks)
        write_text(layout.manifest, json.dumps(asdict(manifest), indent=2) + "\n")
        settings = JournalSettings.of(journal, stands_for.by_key, manifest.origin)
        settings.write()
    finally:
        shutil.rmtree(scratch)
    _log(manifest, balance)
    if earlier is not None and manifest.pending:
        warn_of_changes(settings, earlier, manifest.pending, manifest.samples)
    return manifest


def _remove_earlier(layout: Layout) -> None:
    """Remove what earlier splits have left: chunks of other numbers of shards, and rank files. They
    are views of the journal; none may be taken for a part of what comes."""
    refuse_live_writers(layout)  # one may have come meanwhile
    layout.manifest.unlink(missing_ok=True)  # first: it vouches for the chunks
    for path in layout.rank_files():
        path.unlink()
    for folder in layout.of_other_plans():
        shutil.rmtree(folder)


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > LARGE_INPUT_BYTES


class Table:
    """What split knows of each entry of the input, in files: the entries themselves as lines of a
    chunk, and columns of numbers. In memory they would be most of what split holds.

    Attributes:
        entries: The file of the entries, in the order of the input, duplicates included.
    """

    COLUMNS: ClassVar = {
        "sizes": np.uint32,  # bytes of the entry
        "numbers": np.uint32,  # line of the input
        "hashes": np.uint32,  # of the key
        "places": np.uint64,  # in the journal
        "weights": np.float32,
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.entries = folder / "entries.jsonl"

    @contextmanager
    def writing(self) -> Iterator[Callable[..., None]]:
        """Yields a function that appends entries, and an array for each column."""
        with ExitStack() as stack:
            entries = stack.enter_context(open(self.entries, "wb"))
            files = {
                name: stack.enter_context(open(self._folder / name, "wb")) for name in self.COLUMNS
            }

            def append(lines: bytes, **columns: Any) -> None:
                entries.write(lines)
                for name, column in columns.items():
                    files[name].write(np.asarray(column, self.COLUMNS[name]))

            yield append

    def read(self, name: str, begin: int = 0, count: int = -1) -> np.ndarray:
        """``count`` values of a column from ``begin`` on; all by default."""
        kind = np.dtype(self.COLUMNS[name])
        return np.fromfile(self._folder / name, kind, count, offset=begin * kind.itemsize)

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder)


def _fill(
    table: Table,
    config: Config,
    reading: Reading,
    index: JournalIndex,
    num_processes: int,
    manifest: Manifest,
    bad: BadLines,
    balance: Balance,
    progress: Progress,
    with_failed: bool = False,
) -> MissingFiles:
    """Fill ``table`` from the input, and count; ``with_failed``: error records are samples."""
    manifest.lines = manifest.left_out = 0
    with (
        table.writing() as append,
        Weigher(config.data, num_processes) as weigher,
        closing(scan(config, len(index) > 0, reading, num_processes, with_failed)) as blocks,
    ):
        for block in blocks:
            progress.advance(block.lines)
            manifest.lines += block.lines
            manifest.left_out += block.left_out
            bad.merge(block.bad)
            if len(index):
                places = index.find_all(block.identities)
                if any(block.questions):
                    places = _settle(block, places, index.indexed)
            else:
                places = np.full(len(block.sizes), NO_RECORD, np.uint64)
            weights = np.asarray(block.weights, np.float64)
            if not bad.count:
                weights = weigher.weigh(block.uris, weights, places == NO_RECORD, block.files)
            append(
                block.entries,
                sizes=block.sizes,
                numbers=block.numbers,
                hashes=block.hashes,
                places=places,
                weights=weights,
            )
        balance.looked_up, balance.seconds = weigher.looked_up, weigher.seconds
    return weigher.missing


SETTLED = NO_RECORD - 1
"""The place of an entry with several questions that are all finished; the entry says where."""


def _settle(block: ScannedBlock, places: np.ndarray, files: list[str]) -> np.ndarray:
    """Write into the entries of ``block`` about which there are several questions which of those
    are finished; returns one place for each entry."""
    settled = np.full(len(block.questions), NO_RECORD, np.uint64)
    lines, begin = _lines(block.entries), 0
    for number, count in enumerate(block.questions):
        found = places[begin : begin + max(count, 1)]
        begin += len(found)
        if count == 0:
            settled[number] = found[0]
        if count == 0 or (found == NO_RECORD).all():
            continue
        entry = ChunkEntry.from_line(lines[number])
        entry.done = {
            part: location_at(int(place), files)
            for part, place in zip(entry.requests, found, strict=True)
            if place != NO_RECORD
        }
        lines[number] = entry.to_line()
        block.sizes[number] = len(lines[number])
        if len(entry.done) == count:
            settled[number] = SETTLED
    block.entries = b"".join(lines)
    return settled


def _lines(entries: bytes) -> list[bytes]:
    """The lines in ``entries``; a carriage return ends none: in JSON it is a space."""
    return [line + b"\n" for line in entries.split(b"\n")[:-1]]


def _find_duplicates(table: Table, config: Config, bad: BadLines) -> np.ndarray:
    """Which entries repeat an earlier one (a mask); one id with two contents is added to ``bad``.

    Keys are compared where their hashes are equal, so that no hash decides.
    """
    pairs = sorted_with_positions(table.read("hashes"))
    is_duplicate = np.zeros(len(pairs), bool)
    again = np.zeros(len(pairs), bool)  # the same hash as the one before
    for begin in range(0, len(pairs), BATCH):
        hashes = pairs[begin : begin + BATCH + 1] >> np.uint64(32)
        again[begin + 1 : begin + len(hashes)] = hashes[1:] == hashes[:-1]
    suspects = np.flatnonzero(again)
    if not len(suspects):
        return is_duplicate
    numbers, sizes = table.read("numbers"), table.read("sizes")
    ends = np.cumsum(sizes, dtype=np.uint64)
    with open(table.entries, "rb") as entries:

        def read(at: int) -> tuple[int, bytes]:
            position = int(pairs[at] & np.uint64(0xFFFFFFFF))
            size = int(sizes[position])
            return position, os.pread(entries.fileno(), size, int(ends[position]) - size)

        first: dict[str, tuple[int, bytes]] = {}  # by key, of those that share a hash
        for at in suspects.tolist():
            if not again[at - 1]:
                position, line = read(at - 1)
                first = {ChunkEntry.from_line(line).key: (position, line)}
            position, line = read(at)
            key = ChunkEntry.from_line(line).key
            known, earlier = first.setdefault(key, (position, line))
            if known == position:
                continue
            is_duplicate[position] = True
            if config.data.id_field is not None and not _same_content(line, earlier):
                bad.add(
                    int(numbers[position]),
                    f"id {key!r:.80} stands on line {numbers[known]} with other content",
                )
    return is_duplicate


def _same_content(line: bytes, other: bytes) -> bool:
    if line == other:
        return True
    one, two = ChunkEntry.from_line(line).raw, ChunkEntry.from_line(other).raw
    return content_key(one) == content_key(two)


def _ranks(table: Table, is_duplicate: np.ndarray, num_shards: int, balance: Balance) -> np.ndarray:
    """The rank of each entry; of a duplicate, ``num_shards``."""
    is_pending = np.empty(len(is_duplicate), bool)
    for begin in range(0, len(is_pending), BATCH):
        places = table.read("places", begin, BATCH)
        is_pending[begin : begin + BATCH] = places == NO_RECORD
    is_finished = ~(is_pending | is_duplicate)
    is_pending &= ~is_duplicate
    dealt = deal(table.read("weights")[is_pending], num_shards, balance)
    ranks = np.full(len(is_pending), num_shards, np.uint32)
    ranks[is_pending] = dealt
    evenly = np.arange(num_shards, dtype=np.uint32)
    ranks[is_finished] = np.resize(evenly, np.count_nonzero(is_finished))
    return ranks


def _write_chunks(
    table: Table,
    ranks: np.ndarray,
    files: list[str],
    manifest: Manifest,
    folder: Path,
    layout: Layout,
) -> None:
    """Deal the entries out, as they are, and count them."""
    paths = [folder / layout.chunk(rank).name for rank in range(manifest.num_shards)]
    for path in paths:
        path.touch()
    manifest.chunks = [EMPTY] * len(paths)
    names = [orjson.dumps(name) for name in files]
    num_samples = np.zeros(manifest.num_shards + 1, int)
    num_pending = np.zeros(manifest.num_shards + 1, int)
    with open(table.entries, "rb", buffering=1 << 20) as entries:
        for begin in range(0, len(ranks), BATCH):
            lines = list(islice(entries, BATCH))
            part, places = ranks[begin : begin + BATCH], table.read("places", begin, BATCH)
            for at in np.flatnonzero(places < SETTLED).tolist():
                file, offset, is_error = location_at(int(places[at]), names)
                lines[at] = finished_line(lines[at], file, offset, is_error)
            dealt: list[list[bytes]] = [[] for _ in num_samples]
            for line, rank in zip(lines, part.tolist(), strict=True):
                dealt[rank].append(line)
            # opened anew each time: there may be more ranks than files that may be open
            for rank, path in enumerate(paths):
                if dealt[rank]:
                    data = b"".join(dealt[rank])
                    manifest.chunks[rank] = manifest.chunks[rank].extended(data)
                    with open(path, "ab") as stream:
                        stream.write(data)
            num_samples += np.bincount(part, minlength=len(num_samples))
            num_pending += np.bincount(part[places == NO_RECORD], minlength=len(num_pending))
    manifest.rank_samples, manifest.rank_pending = (
        numbers[:-1].tolist() for numbers in (num_samples, num_pending)
    )


def _log(manifest: Manifest, balance: Balance) -> None:
    if not manifest.samples:
        logger.warning(
            "%s holds no samples (%d lines, %d of them failed earlier and left out): the output "
            "will be empty",
            manifest.origin["input"],
            manifest.lines,
            manifest.left_out,
        )
    logger.info(
        "%d samples (%d lines, %d duplicates, %d failed earlier and left out), %d pending, "
        "in %d chunk(s)",
        manifest.samples,
        manifest.lines,
        manifest.duplicates,
        manifest.left_out,
        manifest.pending,
        manifest.num_shards,
    )
    logger.info(
        "balanced by %s: the longest rank is %.3f times the mean (%.3f if split by count); "
        "%d file(s) looked up in %.1f s, %d pending of unknown %s, which count as the median",
        balance.by,
        balance.longest,
        balance.longest_by_count,
        balance.looked_up,
        balance.seconds,
        balance.unknown,
        balance.by,
    )


def warn_of_changes(
    now: JournalSettings, earlier: JournalSettings, pending: int, samples: int
) -> None:
    """Log what has changed since the split before this one, and what that costs."""
    if not (changed := now.changes(earlier)):
        return
    answers = count_answers(earlier.folder)
    if now.folder == earlier.folder:
        answers = max(0, answers - (samples - pending))
    same_input = now.input == earlier.input
    logger.warning(consequences(changed, pending, samples, answers, same_input=same_input))


@dataclass(frozen=True)
class Fingerprint:
    """What a journal stands for.

    Attributes:
        settings: See :func:`video_pipeline.identity.settings_of`.
        dataset: Name of the dataset.
        dataset_version: Its version.
        reader_version: That of the reader of videos.
    """

    settings: dict[str, Any]
    dataset: str
    dataset_version: int
    reader_version: int

    @property
    def by_key(self) -> dict[str, Any]:
        """All of it, by the names that users know."""
        return {
            **self.settings,
            "dataset": self.dataset,
            "dataset_version": self.dataset_version,
            "reader_version": self.reader_version,
        }

    def folder(self, layout: Layout, run_id: str = "") -> Path:
        """The folder of the journal."""
        name = fingerprint(self.settings, self.dataset, self.dataset_version, self.reader_version)
        return layout.journal / (f"{name}-{run_id}" if run_id else name)

    @classmethod
    def of(cls, config: Config, layout: Layout, task: Task) -> Fingerprint:
        """What the journal of ``config`` stands for, as far as the commit of its model is known."""
        from video_pipeline.data.registry import dataset_of  # imports torch
        from video_pipeline.video import READER_VERSION

        return cls(
            settings_of(config, task.in_messages, known_commit(config, layout)),
            config.run.dataset or task.dataset_name,
            dataset_of(config, task).version,
            READER_VERSION,
        )


def journal_folder(config: Config, layout: Layout, task: Task, run_id: str) -> Path:
    """The folder of the journal that this configuration writes to."""
    return Fingerprint.of(config, layout, task).folder(layout, run_id)


def _look_at_dataset(config: Config, layout: Layout) -> tuple[Fingerprint, Reading]:
    from video_pipeline.data.registry import check_params, dataset_of  # imports torch

    task = load_task(config)
    dataset = dataset_of(config, task)
    check_params(config, task, dataset)
    reading = Reading.of(dataset)
    return Fingerprint.of(config, layout, task), reading


def refuse_live_writers(layout: Layout, *, of_other_plans: bool = False) -> None:
    """Raise :class:`UserError` if a process infers into this output and does not end soon, with
    ``of_other_plans`` only if it does so for another number of shards."""
    deadline = time.monotonic() + GRACE_SECONDS
    for lock in layout.all_locks:
        if of_other_plans and lock.parent == layout.chunks:
            continue
        while is_locked(lock):
            if time.monotonic() > deadline:
                raise UserError(
                    f"{layout.output} is still being written by {describe_holder(lock)} "
                    f"({lock.parent.name}, {lock.stem}): wait for it or stop it, then run again"
                )
            time.sleep(0.1)
