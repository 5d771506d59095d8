"""Scanning: the lines of the input become the entries of chunks, block by block, in processes."""

from __future__ import annotations

import multiprocessing
import os
from array import array
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from glob import has_magic
from itertools import chain, islice
from math import isnan
from typing import TYPE_CHECKING
from zlib import crc32

import orjson

from video_pipeline.config import Config
from video_pipeline.config.source import member_of
from video_pipeline.errors import TaskError
from video_pipeline.journal.format import record_id, record_id_from_json
from video_pipeline.run.chunks import ChunkEntry, entry_line
from video_pipeline.run.run import Run
from video_pipeline.samples.identity import TWICE, check_deterministic, request_digests
from video_pipeline.samples.input import (
    BadLines,
    InputReader,
    InputSample,
    video_address,
)
from video_pipeline.samples.sources import read_blocks
from video_pipeline.split.weights import known_weight
from video_pipeline.tasks.base import ONLY_PART

if TYPE_CHECKING:
    from video_pipeline.decode.expanding import Expander

_AHEAD = 3
"""Blocks that are on their way, for each process that scans: enough that none waits."""


@dataclass
class ScannedBlock:
    """What a block of the input holds; a list has a value for each entry."""

    entries: bytes = b""  # lines of a chunk, none of them done yet
    sizes: array[int] = field(default_factory=lambda: array("I"))  # in bytes
    line_numbers: array[int] = field(default_factory=lambda: array("I"))  # in the input
    hashes: array[int] = field(default_factory=lambda: array("I"))  # 32 bits for each key
    # 16 bytes for each conversation, see JournalIndex.find_all; empty if not wanted. Then how many
    # conversations with a name there are about each entry, 0 if there is one without a name.
    identities: bytes = b""
    conversations: array[int] = field(default_factory=lambda: array("I"))
    uris: list[str] = field(default_factory=list)  # of videos; empty if it need not be weighed
    # What must be there of each sample: its video, its folder of images, the first image of its
    # list; empty if the dataset may take its path for something else.
    files: list[str] = field(default_factory=list)
    weights: array[float] = field(default_factory=lambda: array("d"))  # see known_weight
    lines: int = 0  # this and the others are those of the InputReader
    left_out: int = 0
    bad: BadLines = field(default_factory=BadLines)


class Scanner:
    """Reads blocks of the input, and asks the task what it asks about each sample."""

    def __init__(self, run: Run, with_identities: bool, with_failed: bool) -> None:
        """Arguments as in :func:`scan`."""
        self._config = run.config
        self._task = run.task
        self._dataset = run.dataset
        self._with_identities = with_identities
        self._with_failed = with_failed

    def scan(self, block: bytes, first: int, twice: int) -> ScannedBlock:
        """Scan the whole lines in ``block``, the first of which is line ``first`` of the input.

        The messages of the first ``twice`` samples are built twice. Raises :class:`TaskError`.
        """
        reader = self.reader(block, first)
        return self.scan_samples(reader, reader, twice)

    def reader(self, block: bytes, first: int) -> InputReader:
        """The reader of a block."""
        return InputReader(
            self._config.data,
            block,
            first,
            needs_video=self._dataset.needs_video,
            with_failed=self._with_failed,
        )

    def scan_samples(
        self, reader: InputReader, samples: Iterable[InputSample], twice: int
    ) -> ScannedBlock:
        """Scan ``samples``, which come from the lines of ``reader``; see :meth:`scan`."""
        config, task, fields = self._config, self._task, self._dataset.sample_fields
        by, video_field, root = config.data.balance, config.data.video_field, config.video_root
        block = ScannedBlock()
        entries: list[bytes] = []
        keys: list[bytes] = []
        identities: list[bytes] = []
        for sample in samples:
            raw = sample.raw
            video = raw.get(video_field)
            address = video_address(video, root)
            weight = known_weight(raw, by, address)
            raw.update(__key=sample.key, __video_uri=address)  # as task_sample does in a copy
            requests = {ONLY_PART: ""}
            if not reader.bad.count:  # else nobody will ask
                try:
                    requests = request_digests(task, raw, video, fields)
                    if len(entries) < twice:
                        check_deterministic(task, raw, video, requests, fields)
                except TaskError as error:
                    raise TaskError(
                        f"{config.data.input_jsonl}, line {sample.line}: {error}"
                    ) from error
            key = orjson.dumps(sample.key)
            if ONLY_PART in requests:
                request = requests[ONLY_PART].encode()
                if self._with_identities:
                    identities.append(record_id_from_json(key, b'""', request))
                    block.conversations.append(0)
                entries.append(entry_line(key, request, sample.text))
            else:
                if self._with_identities:
                    identities += [
                        record_id(sample.key, part, request) for part, request in requests.items()
                    ]
                    block.conversations.append(len(requests))
                entries.append(ChunkEntry(sample.key, requests, sample.text, {}).to_line())
            keys.append(key)
            block.line_numbers.append(sample.line)
            block.weights.append(weight)
            is_wanted = isinstance(address, str) and (by == "size" or isnan(weight))
            block.uris.append(address if isinstance(address, str) and is_wanted else "")
            block.files.append(self._file(address))
        block.sizes.extend(map(len, entries))
        block.hashes.extend(map(crc32, keys))
        block.entries, block.identities = b"".join(entries), b"".join(identities)
        block.lines, block.left_out, block.bad = reader.lines, reader.left_out, reader.bad
        return block

    def _file(self, address: str | list[str] | None) -> str:
        """What must be there for a sample at ``address`` to be read; empty if nothing is known."""
        if not self._dataset.reads_files or not address:
            return ""
        file = address if isinstance(address, str) else address[0]
        if (member := member_of(file)) is not None:
            return member[0]
        if self._dataset.reads_patterns and has_magic(file) and not os.path.exists(file):
            parts = file.split("/")
            magic = next(place for place, part in enumerate(parts) if has_magic(part))
            return "/".join(parts[:magic]) or "/"
        return file


def scan(
    run: Run, num_processes: int, with_identities: bool, with_failed: bool = False
) -> Generator[ScannedBlock]:
    """Scan the input block by block, in order.

    Args:
        num_processes: Processes for an input of more than one block. If a line may stand for
            several samples, they find out for which.
        with_identities: Whether ``identities`` of the blocks are wanted.
        with_failed: Whether error records of an earlier run are samples.

    Raises :class:`UserError` if the input cannot be read, or the task or the dataset breaks its
    contract.
    """
    blocks = _numbered_blocks(run.config)
    if run.dataset.expands:
        from video_pipeline.decode.expanding import expanding

        with expanding(run.config, num_processes) as expander:
            yield from _scan_expanded(Scanner(run, with_identities, with_failed), blocks, expander)
        return
    head = list(islice(blocks, 2))
    blocks = chain(head, blocks)
    if num_processes == 1 or len(head) < 2:
        scanner = Scanner(run, with_identities, with_failed)
        yield from (scanner.scan(*block) for block in blocks)
        return
    with ProcessPoolExecutor(
        num_processes,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(run, with_identities, with_failed),
    ) as pool:
        waiting: deque[Future[ScannedBlock]] = deque()
        try:
            for block in blocks:
                waiting.append(pool.submit(_scan, *block))
                if len(waiting) == _AHEAD * num_processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _scan_expanded(
    scanner: Scanner, blocks: Iterable[tuple[bytes, int, int]], expander: Expander
) -> Iterator[ScannedBlock]:
    """Scan ``blocks`` with the samples that their lines stand for; of those that follow a block the
    first are expanded meanwhile, so that a line which takes long keeps no process from working."""
    waiting: deque[tuple[InputReader, list[_Asked], int]] = deque()

    def scan_next() -> ScannedBlock:
        reader, asked, twice = waiting.popleft()
        return scanner.scan_samples(reader, _expanded(reader, asked, expander), twice)

    for block, first, twice in blocks:
        reader = scanner.reader(block, first)
        waiting.append((reader, [(sample, expander.ask(sample)) for sample in reader], twice))
        if len(waiting) == _AHEAD:
            yield scan_next()
    while waiting:
        yield scan_next()


_Asked = tuple[InputSample, "Future[list[bytes] | str]"]
"""A line, and the samples that it stands for when they are known."""


def _expanded(
    reader: InputReader, asked: list[_Asked], expander: Expander
) -> Iterator[InputSample]:
    for sample, future in asked:
        try:
            samples = [
                InputSample(sample.line, reader.key(raw), raw, text)
                for text in expander.answer(sample, future)
                for raw in [orjson.loads(text)]
            ]
        except ValueError as error:
            reader.bad.add(sample.line, str(error))
            continue
        yield from samples


def _numbered_blocks(config: Config) -> Iterator[tuple[bytes, int, int]]:
    """Arguments of :meth:`Scanner.scan`."""
    first, twice = 1, TWICE
    for block in read_blocks(config.data.input_jsonl, config.data.video_field):
        yield block, first, twice
        first, twice = first + block.count(b"\n"), 0


_scanner: Scanner
"""Of a scanning process."""


def _start(run: Run, with_identities: bool, with_failed: bool) -> None:
    global _scanner
    _scanner = Scanner(run, with_identities, with_failed)


def _scan(block: bytes, first: int, twice: int) -> ScannedBlock:
    return _scanner.scan(block, first, twice)
