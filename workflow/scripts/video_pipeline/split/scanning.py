"""Turns the lines of the input into the entries of chunks, block by block, in processes."""

from __future__ import annotations

import multiprocessing
import os
from array import array
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from glob import has_magic
from itertools import chain, islice
from math import isnan
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from video_pipeline.config import Config
from video_pipeline.config.source import folder_of_pattern, member_of
from video_pipeline.errors import TaskError
from video_pipeline.journal.format import record_id, record_id_from_json
from video_pipeline.model.model import with_commit
from video_pipeline.run.chunks import ChunkEntry, entry_line
from video_pipeline.run.run import Run
from video_pipeline.samples.grouping import grouped, whole_videos
from video_pipeline.samples.identity import TWICE, check_deterministic, request_digests
from video_pipeline.samples.input import BadLines, InputReader, InputSample, video_address
from video_pipeline.samples.sources import read_blocks
from video_pipeline.samples.where import HeaderNeeded, Where
from video_pipeline.samples.windows import is_window, window_id
from video_pipeline.split.weights import known_weight
from video_pipeline.tasks.base import ONLY_PART

if TYPE_CHECKING:
    from video_pipeline.decode.expanding import Expanded, Expander

LEFT_OUT = "left_out"
"""The status of a sample that is not asked about."""

_NO_IDENTITY = bytes(16)
"""The identity of a sample that is not asked about."""

_AHEAD = 3
"""Blocks under way for each process that scans: enough that no process waits."""


@dataclass
class ScannedBlock:
    """The scanned lines of a block of the input; a list has a value for each entry."""

    entries: bytes = b""  # Lines of a chunk, all pending.
    sizes: array[int] = field(default_factory=lambda: array("I"))  # In bytes.
    line_numbers: array[int] = field(default_factory=lambda: array("I"))  # In the input.
    hashes: array[int] = field(default_factory=lambda: array("I"))  # 32 bits for each key.
    # 16 bytes for each conversation, see JournalIndex.find_all; empty if not wanted. Then the
    # number of named conversations about each entry; 0 if its only conversation has no name.
    identities: bytes = b""
    conversations: array[int] = field(default_factory=lambda: array("I"))
    uris: list[str] = field(default_factory=list)  # Those of videos; empty if not to be weighed.
    # The file of each sample that must exist: its video, its folder of images, or the first image
    # of its list; empty if the dataset may take its path for something else.
    files: list[str] = field(default_factory=list)
    weights: array[float] = field(default_factory=lambda: array("d"))  # See known_weight.
    is_left_out: array[int] = field(default_factory=lambda: array("B"))
    lines: int = 0  # This and the next four are those of the InputReader.
    failed: int = 0
    left_out: int = 0
    dropped: Counter[bool | None] = field(default_factory=Counter)
    bad: BadLines = field(default_factory=BadLines)
    unfound: set[str] = field(default_factory=set)  # This and the next are those of Where.
    known: set[str] = field(default_factory=set)


class Scanner:
    """Reads blocks of the input, and lets the task build the messages about each sample."""

    def __init__(self, run: Run, with_identities: bool, with_failed: bool) -> None:
        """Arguments are those of :func:`scan`."""
        self._config = run.config
        self._task = run.task
        self._dataset = run.dataset
        self._with_identities = with_identities
        self._with_failed = with_failed
        self._origin = {"__task": run.task.name, "__model": run.config.model_name}
        self.where = Where.of(run.config)

    def scan(self, block: bytes, first: int, twice: int) -> ScannedBlock:
        """Scan the whole lines in ``block``, the first of which is line ``first`` of the input.

        The messages of the first ``twice`` samples are built twice. Raises :class:`TaskError`.
        """
        reader = self.reader(block, first)
        return self.scan_samples(reader, (sample for sample, _ in self.judged(reader)), twice)

    def reader(self, block: bytes, first: int) -> InputReader:
        """The reader of a block."""
        return InputReader(
            self._config.data,
            block,
            first,
            needs_video=self._dataset.needs_video,
            with_failed=self._with_failed,
        )

    def judged(self, reader: InputReader) -> Iterator[tuple[InputSample, bool]]:
        """The samples of ``reader``; and, for each, whether the run's condition depends on the
        header of its video."""
        for sample in reader:
            needs_header = False
            if self.where is not None and sample.left_out is None:
                try:
                    drop_unless(self.where.holds(sample.raw), sample, reader)
                except HeaderNeeded:
                    needs_header = True
                except ValueError as error:
                    reader.bad.add(sample.line, str(error))
                    continue
            yield sample, needs_header

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
        if config.data.group_by is not None:
            samples = grouped(samples, reader.bad, video_field)
        for sample in samples:
            raw = sample.raw
            block.line_numbers.append(sample.line)
            block.is_left_out.append(sample.left_out is not None)
            if sample.left_out is not None:
                keys.append(orjson.dumps(sample.key))
                entries.append(self._left_out_line(sample))
                if self._with_identities:
                    identities.append(_NO_IDENTITY)
                    block.conversations.append(0)
                block.weights.append(0.0)
                block.uris.append("")
                block.files.append("")
                continue
            video = raw.get(video_field)
            address = video_address(video, root)
            weight = known_weight(raw, by, address)
            raw.update(__key=sample.key, __video_uri=address)  # As task_sample does in a copy.
            requests = {ONLY_PART: ""}
            if not reader.bad.count:  # After a bad line nothing will be asked.
                try:
                    requests = request_digests(task, raw, video, fields)
                    if len(entries) < twice:
                        check_deterministic(task, raw, video, requests, fields)
                except TaskError as error:
                    raise TaskError(
                        f"{config.data.source.name}, line {sample.line}: {error}"
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
            block.weights.append(weight)
            is_wanted = isinstance(address, str) and (by == "size" or isnan(weight))
            block.uris.append(address if isinstance(address, str) and is_wanted else "")
            block.files.append(self._file(address))
        block.sizes.extend(map(len, entries))
        block.hashes.extend(map(crc32, keys))
        block.entries, block.identities = b"".join(entries), b"".join(identities)
        block.lines, block.left_out, block.bad = reader.lines, reader.left_out, reader.bad
        block.failed, block.dropped = reader.failed, reader.dropped
        if self.where is not None:
            block.unfound, block.known = self.where.unfound, self.where.known
        return block

    def _left_out_line(self, sample: InputSample) -> bytes:
        """The output record of a sample that is not asked about."""
        head = {"__key": sample.key, "__status": LEFT_OUT, "__left_out": sample.left_out}
        record = {**head, **self._origin, "input": orjson.Fragment(sample.text)}
        return orjson.dumps(record) + b"\n"

    def _file(self, address: str | list[str] | None) -> str:
        """The file that must exist for a sample at ``address``; empty if that is not known."""
        if not self._dataset.reads_files or not address:
            return ""
        file = address if isinstance(address, str) else address[0]
        if (member := member_of(file)) is not None:
            return member[0]
        if self._dataset.reads_patterns and has_magic(file) and not os.path.exists(file):
            return folder_of_pattern(file)
        return file


def scan(
    run: Run, num_processes: int, with_identities: bool, with_failed: bool = False
) -> Generator[ScannedBlock]:
    """Scan the input block by block, in order.

    Args:
        num_processes: Processes for an input of more than one block, or for ``Dataset.expand``.
        with_identities: Whether to compute the ``identities`` of the blocks.
        with_failed: Whether error records of an earlier run are samples.

    Raises :class:`UserError` if the input cannot be read, or task or dataset break their contract.
    """
    blocks = _numbered_blocks(run.config)
    where = Where.of(run.config)
    if run.dataset.expands or (where is not None and where.may_need_header):
        from video_pipeline.decode.expanding import expanding

        with expanding(with_commit(run.config, run.commit), num_processes) as expander:
            scanner = Scanner(run, with_identities, with_failed)
            yield from _scan_expanded(scanner, blocks, expander, every=run.dataset.expands)
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
    scanner: Scanner, blocks: Iterable[tuple[bytes, int, int]], expander: Expander, *, every: bool
) -> Iterator[ScannedBlock]:
    """Scan ``blocks`` with the samples that their lines stand for. The next blocks are expanded
    meanwhile, so that a slow line does not keep other processes idle. ``every``: all lines are
    expanded, not only those whose header is needed."""
    waiting: deque[tuple[InputReader, list[_Asked], int]] = deque()

    def scan_next() -> ScannedBlock:
        reader, asked, twice = waiting.popleft()
        return scanner.scan_samples(reader, _expanded(reader, asked, expander), twice)

    for block, first, twice in blocks:
        reader = scanner.reader(block, first)
        asked: list[_Asked] = [
            (sample, expander.ask(sample))
            if sample.left_out is None and (every or needs_header)
            else (sample, None)
            for sample, needs_header in scanner.judged(reader)
        ]
        waiting.append((reader, asked, twice))
        if len(waiting) == _AHEAD:
            yield scan_next()
    while waiting:
        yield scan_next()


_Asked = tuple[InputSample, "Future[Expanded] | None"]
"""A line, and the future samples that it stands for; None: only itself."""


def _expanded(
    reader: InputReader, asked: list[_Asked], expander: Expander
) -> Iterator[InputSample]:
    for sample, future in asked:
        if future is None:
            yield sample
            continue
        try:
            texts = expander.answer(sample, future)
            if not isinstance(texts, list):
                drop_unless(texts, sample, reader)
                yield sample
                continue
            samples = [
                InputSample(sample.line, _key(reader, sample, raw, text), raw, text)
                for text in texts
                for raw in [orjson.loads(text)]
            ]
        except ValueError as error:
            reader.bad.add(sample.line, str(error))
            continue
        yield from samples


def _key(reader: InputReader, sample: InputSample, raw: dict[str, Any], text: bytes) -> str:
    """The key of the sample ``raw``, which ``sample`` stands for."""
    if not sample.is_key_kept:
        return reader.key(raw)
    if text == sample.text or raw == sample.raw:
        return sample.key
    return window_id(sample.key, raw) if is_window(raw) else reader.key(raw)


def drop_unless(holds: bool | None, sample: InputSample, reader: InputReader) -> None:
    """Leave ``sample`` out unless the run's condition holds for it."""
    if holds is not True:
        reader.dropped[holds] += 1
        message = "data.where does not hold"
        if holds is None:
            message = "data.where: a field that it needs is missing or null"
        sample.left_out = {"by": "where", "message": message}


def _numbered_blocks(config: Config) -> Iterator[tuple[bytes, int, int]]:
    """Arguments of :meth:`Scanner.scan`."""
    first, twice = 1, TWICE
    blocks = read_blocks(config.data.input_jsonl, config.data.video_field)
    for block in blocks if config.data.group_by is None else whole_videos(blocks):
        yield block, first, twice
        first, twice = first + block.count(b"\n"), 0


_scanner: Scanner
"""The scanner of this process, in a process of the pool."""


def _start(run: Run, with_identities: bool, with_failed: bool) -> None:
    global _scanner
    _scanner = Scanner(run, with_identities, with_failed)


def _scan(block: bytes, first: int, twice: int) -> ScannedBlock:
    return _scanner.scan(block, first, twice)
