"""Splits the input: checks it, finds finished samples, and gives each rank its chunk."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import uuid
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
import orjson

from video_pipeline.common.faults import process_deaths
from video_pipeline.common.files import (
    EMPTY,
    make_folder,
    remove_leftovers,
    sync_folder,
    sync_tree,
    write_text,
)
from video_pipeline.common.processes import job_processes
from video_pipeline.common.progress import Progress
from video_pipeline.config import Config
from video_pipeline.config.source import Source, shown
from video_pipeline.config.vllm_version import warn_if_untried
from video_pipeline.errors import UserError
from video_pipeline.journal.index import NO_RECORD, JournalIndex, location_at, read_index
from video_pipeline.model.chat_template import check_template
from video_pipeline.model.model import Model, with_commit
from video_pipeline.model.processor import local_folder
from video_pipeline.model.token_budget import check_budget_of_model
from video_pipeline.run.changes import JournalSettings, warn_of_changes
from video_pipeline.run.chunks import ChunkEntry, finished_line
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.origin import origin_of
from video_pipeline.run.run import DatasetNeeds, Run
from video_pipeline.run.writers import refuse_live_writers
from video_pipeline.samples.input import BadLines
from video_pipeline.samples.where import Where
from video_pipeline.split.balance import BATCH, BalanceReport, assign_ranks
from video_pipeline.split.scanning import ScannedBlock, scan
from video_pipeline.split.table import EntryTable, find_duplicates
from video_pipeline.split.weights import Weigher

logger = logging.getLogger(__name__)

LARGE_INPUT_BYTES = 10_000_000
"""For an input larger than this, split saves memory; a smaller input is split faster."""

ALL_FINISHED = NO_RECORD - 1
"""The place of an entry whose several conversations are all finished; it has their locations."""

LEFT_OUT = NO_RECORD - 2
"""The place of an entry that is not asked about."""


def split(config: Config, layout: Layout, run_id: str = "", num_processes: int = 1) -> Manifest:
    """Split the input into ``layout.num_shards`` chunks and write the manifest.

    Pending samples are balanced (:mod:`video_pipeline.split.balance`), finished samples are spread
    evenly. Each chunk stays in input order. If the input is bad, nothing is written. ``run_id``
    names the journal of a run without ``data.resume``. ``num_processes`` scan an input of more than
    one block.

    Raises :class:`UserError` if there are bad lines, the configuration cannot work, or another
    process writes to the same output.
    """
    refuse_live_writers(layout)
    with process_deaths("a process of split"), ExitStack() as stack:
        if num_processes > 1 or config.data.balance == "duration":
            stack.enter_context(job_processes())
        progress = stack.enter_context(Progress(layout.progress("split"), "split", "lines"))
        return _Split(Run(config, layout), run_id, num_processes, progress).run()


class _Split:
    """One split, step by step."""

    def __init__(self, run: Run, run_id: str, num_processes: int, progress: Progress) -> None:
        self._run = run
        self._num_processes = num_processes
        self._progress = progress
        config, layout = run.config, run.layout
        run.task  # noqa: B018 - mistakes in the user's code are reported before anything is read
        run.commit = Model.of(config).resolve_commit(layout.commits)
        at_commit = with_commit(config, run.commit)
        if num_processes > 1 and _is_large(config.data.source):
            # torch stays in another process: it would be half of this one's memory.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                run.dataset = pool.submit(DatasetNeeds.of, at_commit).result()
        if run.dataset.needs_video:
            check_budget_of_model(config)
        if run.dataset.ignored:
            logger.warning(
                "%s: set, but without effect: the processor of %s decides which frames it sees, "
                "and how large. vision.nframes and vision.max_frames thin them out, "
                "vision.max_pixels makes large ones smaller",
                ", ".join(f"vision.{name}" for name in run.dataset.ignored),
                config.vllm.model,
            )
        if config.run.engine == "vllm":
            warn_if_untried()
            if folder := local_folder(Model.of(at_commit)):
                check_template(config, folder)
        # A run without resume has no finished samples, so changed settings need no warning.
        self._resumes = not run_id
        self._earlier = JournalSettings.last(layout)
        self._settings = run.journal_settings(run_id)
        self._index = read_index(self._settings.folder)
        self._bad = BadLines()
        self._failed = 0  # Lines with error records that are no samples.
        self._balance = BalanceReport(config.data.balance)
        self._manifest = Manifest(
            split_id=uuid.uuid4().hex[:12],
            num_shards=layout.num_shards,
            task=run.task.name,
            journal=str(self._settings.folder),
            settings=run.settings_digest,
            commit=run.commit,
            origin=run.origin,
            journal_files=self._index.files,
            expanded=run.dataset.expands,
            with_videos=run.dataset.needs_video,
            sample_fields=list(run.dataset.sample_fields),
        )

    def run(self) -> Manifest:
        layout, manifest = self._run.layout, self._manifest
        scratch = layout.split_scratch
        shutil.rmtree(scratch, ignore_errors=True)  # A killed split may have left it.
        scratch.mkdir(parents=True)
        try:
            self._write_chunks(scratch)
            self._replace_chunks(scratch)
        finally:
            shutil.rmtree(scratch)
        _log(manifest, self._balance)
        if self._resumes:
            warn_of_changes(self._settings, self._earlier, manifest.pending, manifest.samples)
        return manifest

    def _write_chunks(self, scratch: Path) -> None:
        """Write the chunks and the order into ``scratch``, and complete the manifest."""
        config, manifest = self._run.config, self._manifest
        table = EntryTable(scratch / "table")
        weigher = self._fill(table)
        if 0 < self._failed == manifest.lines:
            logger.info("%s: all records are failed samples: run them", config.data.source.name)
            self._progress.advance(-manifest.lines)
            weigher = self._fill(table, with_failed=True)
        files = self._index.indexed
        del self._index  # The next arrays need its memory.
        is_duplicate = find_duplicates(table, self._bad, config.data.video_field)
        self._bad.raise_any(config.data.source.name)
        if origin_of(config)["files"] != manifest.origin["files"]:
            raise UserError(
                f"{shown(config.data.input_jsonl)}, a plugin or a prompt file has changed "
                "while the input was split; run again"
            )
        manifest.duplicates = int(is_duplicate.sum())
        ranks = _ranks(table, is_duplicate, manifest.num_shards, self._balance)
        order = ranks[~is_duplicate]
        manifest.left_out_records = int(np.count_nonzero(order == manifest.num_shards))
        weigher.missing.check(config, len(order) - manifest.left_out_records)
        _write_entries(table, ranks, files, manifest, scratch, self._run.layout)
        order.tofile(scratch / self._run.layout.order.name)
        manifest.order = EMPTY.extended(order.view(np.uint8).data)
        manifest.samples, manifest.pending = sum(manifest.rank_samples), sum(manifest.rank_pending)
        manifest.balance = self._balance.as_dict()
        table.remove()
        sync_tree(scratch)

    def _fill(self, table: EntryTable, with_failed: bool = False) -> Weigher:
        """Fill ``table`` from the input, and count; ``with_failed``: error records are samples."""
        run, manifest, index = self._run, self._manifest, self._index
        manifest.lines = manifest.left_out = manifest.dropped = manifest.unknown = self._failed = 0
        where, unfound, known = Where.of(run.config), set[str](), set[str]()
        if where is not None:
            unfound = where.unfound
        with (
            table.writing() as append,
            Weigher(run.config.data, self._num_processes) as weigher,
            closing(scan(run, self._num_processes, len(index) > 0, with_failed)) as blocks,
        ):
            for block in blocks:
                self._progress.advance(block.lines)
                manifest.lines += block.lines
                manifest.left_out += block.left_out
                manifest.dropped += block.dropped.total()
                manifest.unknown += block.dropped[None]
                self._failed += block.failed
                unfound, known = unfound & block.unfound, known | block.known
                self._bad.merge(block.bad)
                places = _places(block, index)
                places[np.asarray(block.is_left_out, bool)] = LEFT_OUT
                weights = np.asarray(block.weights, np.float64)
                if not self._bad.count:
                    weights = weigher.weigh(block.uris, weights, places == NO_RECORD, block.files)
                append(
                    block.entries,
                    sizes=block.sizes,
                    lines=block.line_numbers,
                    hashes=block.hashes,
                    places=places,
                    weights=weights,
                )
        self._balance.looked_up, self._balance.seconds = weigher.looked_up, weigher.seconds
        if where is not None and known and not self._bad.count:
            where.check_found(unfound, known)
        return weigher

    def _replace_chunks(self, scratch: Path) -> None:
        """Move the files in ``scratch`` to their place, and remove those of earlier splits, even
        with other numbers of shards, and their rank files: a later job must not take one for its
        own. Nothing is lost, because they are views of the journal."""
        layout, journal = self._run.layout, self._settings.folder
        refuse_live_writers(layout)  # A writer may have started meanwhile.
        layout.manifest.unlink(missing_ok=True)  # First, because it vouches for the chunks.
        for path in layout.rank_files():
            path.unlink()
        for folder in layout.of_other_shardings():
            shutil.rmtree(folder)
        make_folder(layout.chunks)
        layout.remove_leftovers()
        if journal.is_dir():
            remove_leftovers(journal)
        for entry in sorted(scratch.iterdir()):
            entry.replace(layout.chunks / entry.name)
        sync_folder(layout.chunks)
        write_text(layout.manifest, json.dumps(asdict(self._manifest), indent=2) + "\n")
        self._settings.write()


def _is_large(source: Source) -> bool:
    if not (source.is_local and source.is_file):
        return True
    path = Path(source.place)
    return path.is_file() and path.stat().st_size > LARGE_INPUT_BYTES


def _places(block: ScannedBlock, index: JournalIndex) -> np.ndarray:
    """The place of each entry of ``block`` in the journal; :data:`NO_RECORD` if it is pending."""
    if not len(index):
        return np.full(len(block.sizes), NO_RECORD, np.uint64)
    places = index.find_all(block.identities)
    if any(block.conversations):
        return _note_finished_parts(block, places, index.indexed)
    return places


def _note_finished_parts(block: ScannedBlock, places: np.ndarray, files: list[str]) -> np.ndarray:
    """Note the finished conversations in the entries of ``block`` that have several. Returns one
    place for each entry; ``places`` has one for each conversation."""
    entry_places = np.full(len(block.conversations), NO_RECORD, np.uint64)
    lines, begin = _lines(block.entries), 0
    for position, count in enumerate(block.conversations):
        own_places = places[begin : begin + max(count, 1)]
        begin += len(own_places)
        if count == 0:
            entry_places[position] = own_places[0]
        if count == 0 or (own_places == NO_RECORD).all():
            continue
        entry = ChunkEntry.from_line(lines[position])
        entry.done = {
            part: location_at(int(place), files)
            for part, place in zip(entry.requests, own_places, strict=True)
            if place != NO_RECORD
        }
        lines[position] = entry.to_line()
        block.sizes[position] = len(lines[position])
        if len(entry.done) == count:
            entry_places[position] = ALL_FINISHED
    block.entries = b"".join(lines)
    return entry_places


def _lines(entries: bytes) -> list[bytes]:
    """The lines in ``entries``. A carriage return ends no line: in JSON it is whitespace."""
    return [line + b"\n" for line in entries.split(b"\n")[:-1]]


def _ranks(
    table: EntryTable, is_duplicate: np.ndarray, num_shards: int, balance: BalanceReport
) -> np.ndarray:
    """The rank of each entry: ``num_shards`` if it is left out, one more if it is a duplicate."""
    is_pending = np.empty(len(is_duplicate), bool)
    is_finished = ~is_duplicate
    for begin in range(0, len(is_pending), BATCH):
        places = table.read("places", begin, BATCH)
        is_pending[begin : begin + BATCH] = places == NO_RECORD
        is_finished[begin : begin + BATCH] &= (places != NO_RECORD) & (places != LEFT_OUT)
    is_pending &= ~is_duplicate
    # These arrays are as long as the input, so as few as possible are made.
    pending_ranks = assign_ranks(table.read("weights")[is_pending], num_shards, balance)
    ranks = np.full(len(is_pending), num_shards, np.uint32)
    ranks[is_pending] = pending_ranks
    evenly = np.arange(num_shards, dtype=np.uint32)
    ranks[is_finished] = np.resize(evenly, np.count_nonzero(is_finished))
    ranks[is_duplicate] = num_shards + 1
    return ranks


def _write_entries(
    table: EntryTable,
    ranks: np.ndarray,
    files: list[str],
    manifest: Manifest,
    folder: Path,
    layout: Layout,
) -> None:
    """Write each entry, unchanged, into the chunk of its rank, and count the entries. Those that
    are left out go into a file of their own."""
    paths = [folder / layout.chunk(rank).name for rank in range(manifest.num_shards)]
    paths.append(folder / layout.left_out.name)
    for path in paths:
        path.touch()
    seals = [EMPTY] * len(paths)
    json_of = {name: orjson.dumps(name) for name in files}
    num_samples = np.zeros(len(paths) + 1, int)
    num_pending = np.zeros(len(paths) + 1, int)
    num_failed = np.zeros(len(paths) + 1, int)
    with open(table.entries, "rb", buffering=1 << 20) as entries:
        for begin in range(0, len(ranks), BATCH):
            lines = list(islice(entries, BATCH))
            batch_ranks = ranks[begin : begin + BATCH]
            places = table.read("places", begin, BATCH)
            for position in np.flatnonzero(places < LEFT_OUT).tolist():
                file, offset, is_error = location_at(int(places[position]), files)
                num_failed[batch_ranks[position]] += is_error
                lines[position] = finished_line(lines[position], json_of[file], offset, is_error)
            of_rank: list[list[bytes]] = [[] for _ in num_samples]
            for line, rank in zip(lines, batch_ranks.tolist(), strict=True):
                of_rank[rank].append(line)
            # Files do not stay open: there may be more ranks than files that a process may open.
            for rank, path in enumerate(paths):
                if of_rank[rank]:
                    data = b"".join(of_rank[rank])
                    seals[rank] = seals[rank].extended(data)
                    with open(path, "ab") as stream:
                        stream.write(data)
            size = len(num_samples)
            num_samples += np.bincount(batch_ranks, minlength=size)
            num_pending += np.bincount(batch_ranks[places == NO_RECORD], minlength=size)
    *manifest.chunks, manifest.left_out_seal = seals
    manifest.rank_samples = num_samples[: manifest.num_shards].tolist()
    manifest.rank_pending = num_pending[: manifest.num_shards].tolist()
    manifest.rank_failed = num_failed[: manifest.num_shards].tolist()


def _log(manifest: Manifest, balance: BalanceReport) -> None:
    if not manifest.samples:
        logger.warning(
            "%s holds no samples to ask about (%d lines, %d of them failed earlier and left out, "
            "%d dropped by data.where): the output will hold no answers",
            manifest.origin["input"],
            manifest.lines,
            manifest.left_out,
            manifest.dropped,
        )
    if manifest.dropped:
        logger.info(
            "data.where drops %d of %d lines, %d of them because a field that it needs is missing "
            "or null",
            *(manifest.dropped, manifest.lines, manifest.unknown),
        )
    others = [
        f"{number:,} {words}"
        for number, words in (
            (manifest.duplicates, "duplicates"),
            (manifest.left_out, "failed earlier and left out"),
        )
        if number
    ]
    logger.info(
        "%s samples (%s), %s pending, in %d chunk(s)",
        f"{manifest.samples:,}",
        ", ".join([f"{manifest.lines:,} lines", *others]),
        f"{manifest.pending:,}",
        manifest.num_shards,
    )
    if manifest.num_shards > 1:
        logger.info(
            "balanced by %(by)s: the longest rank is %(longest).3f times the mean "
            "(%(longest_by_count).3f if split by count); %(looked_up)d file(s) looked up in "
            "%(seconds).1f s, %(unknown)d pending of unknown %(by)s, which count as the median",
            vars(balance),
        )
