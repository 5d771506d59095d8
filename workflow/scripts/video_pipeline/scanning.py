"""Scanning: the lines of the input become the entries of chunks, block by block, in processes."""

from __future__ import annotations

import inspect
import multiprocessing
import os
from array import array
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from glob import has_magic
from itertools import chain, islice
from math import isnan
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from video_pipeline.balance import known_weight
from video_pipeline.chunks import ChunkEntry, entry_line
from video_pipeline.config import Config
from video_pipeline.errors import TaskError
from video_pipeline.identity import request_digests
from video_pipeline.journal import identity, identity_of_json
from video_pipeline.samples import (
    BadLines,
    InputReader,
    InputSample,
    read_blocks,
    video_address,
)
from video_pipeline.tasks.base import WHOLE, Task, checked_names
from video_pipeline.tasks.registry import load_task

if TYPE_CHECKING:
    from video_pipeline.data.base import BaseDataset
    from video_pipeline.decode.expanding import Expander

TWICE = 100
"""How many samples have their messages built twice, to see that they come out the same."""

_AHEAD = 3
"""Blocks that are on their way, for each process that scans: enough that none waits."""


@dataclass
class ScannedBlock:
    """What a block of the input holds.

    Attributes:
        entries: Lines of a chunk, none of them done yet.
        sizes: Bytes of each entry.
        numbers: The line of the input that each entry comes from.
        hashes: 32 bits of a hash of each key.
        identities: 16 bytes for each question, see :meth:`JournalIndex.find_all`; empty if not
            wanted.
        questions: How many conversations with a name there are about each entry, 0 if one without;
            empty if ``identities`` is.
        uris: The address of each video; empty where it need not be weighed.
        files: What must be there of each sample: its video, its folder of images, the first image
            of its list; empty where the dataset may take its path for something else.
        weights: What is known of each entry's weight, see :func:`known_weight`.
        lines: Lines that are not blank.
        left_out: Error records of an earlier run's output, unless they are samples.
        bad: Bad lines.
    """

    entries: bytes = b""
    sizes: array = field(default_factory=lambda: array("I"))
    numbers: array = field(default_factory=lambda: array("I"))
    hashes: array = field(default_factory=lambda: array("I"))
    identities: bytes = b""
    questions: array = field(default_factory=lambda: array("I"))
    uris: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    weights: array = field(default_factory=lambda: array("d"))
    lines: int = 0
    left_out: int = 0
    bad: BadLines = field(default_factory=BadLines)


@dataclass(frozen=True)
class Reading:
    """What the dataset wants of the samples.

    Attributes:
        needs_video: A sample without a video is bad.
        expands: A sample may stand for several.
        sample_fields: Fields of a sample that change its input, beside the messages.
        reads_files: The path of a sample is that of a file, or of a folder of images.
        reads_patterns: It may be a pattern of names, too.
    """

    needs_video: bool = True
    expands: bool = False
    sample_fields: tuple[str, ...] = ()
    reads_files: bool = False
    reads_patterns: bool = False

    @classmethod
    def of(cls, dataset: type[BaseDataset]) -> Reading:
        """What ``dataset`` wants. Raises :class:`TaskError` for what is no list of fields.

        A dataset of the user's own, from :class:`BaseDataset`, may take a path for anything: a name
        in an archive, a key of a store.
        """
        from video_pipeline.data.frames import FramesDataset  # imports torch
        from video_pipeline.data.qwen_video import QwenVideoDataset

        name = f"dataset {dataset.__name__}"
        if not isinstance(inspect.getattr_static(dataset, "expand"), classmethod):
            raise TaskError(
                f"{name}: expand must be a classmethod: @classmethod, (cls, sample, params)"
            )
        expands = dataset.expand.__func__ is not _base_dataset().expand.__func__
        fields = checked_names(dataset.sample_fields, f"{name}: sample_fields")
        return cls(
            needs_video=dataset.needs_video,
            expands=expands,
            sample_fields=fields,
            reads_files=dataset.needs_video and issubclass(dataset, QwenVideoDataset),
            reads_patterns=issubclass(dataset, FramesDataset),
        )


def _base_dataset() -> type[BaseDataset]:
    from video_pipeline.data.base import BaseDataset  # imports torch

    return BaseDataset


class Scanner:
    """Reads blocks of the input, and asks the task what it asks about each sample."""

    def __init__(
        self, config: Config, with_identities: bool, reading: Reading, with_failed: bool
    ) -> None:
        self._config = config
        self._with_failed = with_failed
        self._task = load_task(config)
        self._with_identities = with_identities
        self._needs_video = reading.needs_video
        self._sample_fields = reading.sample_fields
        self._reading = reading

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
            needs_video=self._needs_video,
            with_failed=self._with_failed,
        )

    def scan_samples(
        self, reader: InputReader, samples: Iterable[InputSample], twice: int
    ) -> ScannedBlock:
        """Scan ``samples``, which come from the lines of ``reader``; see :meth:`scan`."""
        config, task = self._config, self._task
        scanned = ScannedBlock()
        entries, keys, identities = [], [], []
        by, video_field, root = config.data.balance, config.data.video_field, config.video_root
        for sample in samples:
            raw = sample.raw
            weight = known_weight(raw, by)
            video = raw.get(video_field)
            address = video_address(video, root)
            raw.update(__key=sample.key, __video_uri=address)  # as task_sample does in a copy
            requests = {WHOLE: ""}
            if not reader.bad.count:  # else nobody will ask
                try:
                    requests = request_digests(task, raw, video, self._sample_fields)
                    if len(entries) < twice:
                        check_deterministic(task, raw, video, requests, self._sample_fields)
                except TaskError as error:
                    raise TaskError(
                        f"{config.data.input_jsonl}, line {sample.line}: {error}"
                    ) from error
            key = orjson.dumps(sample.key)
            if WHOLE in requests:
                request = requests[WHOLE].encode()
                if self._with_identities:
                    identities.append(identity_of_json(key, b'""', request))
                    scanned.questions.append(0)
                entries.append(entry_line(key, request, sample.text))
            else:
                if self._with_identities:
                    identities += [identity(sample.key, *one) for one in requests.items()]
                    scanned.questions.append(len(requests))
                entries.append(ChunkEntry(sample.key, requests, sample.text, {}).to_line())
            keys.append(key)
            scanned.numbers.append(sample.line)
            scanned.weights.append(weight)
            is_wanted = isinstance(address, str) and (by == "size" or isnan(weight))
            scanned.uris.append(address if is_wanted else "")
            scanned.files.append(self._file(address))
        scanned.sizes.extend(map(len, entries))
        scanned.hashes.extend(map(crc32, keys))
        scanned.entries, scanned.identities = b"".join(entries), b"".join(identities)
        scanned.lines, scanned.left_out, scanned.bad = reader.lines, reader.left_out, reader.bad
        return scanned

    def _file(self, address: str | list[str] | None) -> str:
        """What must be there for a sample at ``address`` to be read; empty if nothing is known."""
        if not self._reading.reads_files or not address:
            return ""
        file = address if isinstance(address, str) else address[0]
        if self._reading.reads_patterns and has_magic(file) and not os.path.exists(file):
            parts = file.split("/")
            magic = next(number for number, part in enumerate(parts) if has_magic(part))
            return "/".join(parts[:magic]) or "/"
        return file


def scan(
    config: Config,
    with_identities: bool,
    reading: Reading,
    num_processes: int,
    with_failed: bool = False,
) -> Iterator[ScannedBlock]:
    """Scan the input block by block, in order; an input of more than one block in
    ``num_processes`` processes. Where a sample may stand for several, what takes the time is to
    find out for which: then ``num_processes`` is the number of cores for that. ``reading`` is what
    the dataset wants; ``with_failed``: error records of an earlier run are samples.

    Raises :class:`UserError` where it cannot be read, and :class:`TaskError`.
    """
    blocks = _numbered_blocks(config)
    if reading.expands:
        from video_pipeline.decode.expanding import expanding

        scanner = Scanner(config, with_identities, reading, with_failed)
        with expanding(config, num_processes) as expander:
            yield from _scan_expanded(scanner, blocks, expander)
        return
    head = list(islice(blocks, 2))
    if num_processes == 1 or len(head) < 2:
        scanner = Scanner(config, with_identities, reading, with_failed)
        for numbered in chain(head, blocks):
            yield scanner.scan(*numbered)
        return
    with ProcessPoolExecutor(
        num_processes,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(config, with_identities, reading, with_failed),
    ) as pool:
        waiting: deque[Future[ScannedBlock]] = deque()
        try:
            for numbered in chain(head, blocks):
                waiting.append(pool.submit(_scan, *numbered))
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
    waiting: deque[tuple[InputReader, list[tuple[InputSample, Future]], int]] = deque()

    def scan_next() -> ScannedBlock:
        reader, asked, twice = waiting.popleft()
        return scanner.scan_samples(reader, _answered(reader, asked, expander), twice)

    for block, first, twice in blocks:
        reader = scanner.reader(block, first)
        waiting.append((reader, [(sample, expander.ask(sample)) for sample in reader], twice))
        if len(waiting) == _AHEAD:
            yield scan_next()
    while waiting:
        yield scan_next()


def _answered(
    reader: InputReader, asked: list[tuple[InputSample, Future]], expander: Expander
) -> Iterator[InputSample]:
    for sample, future in asked:
        try:
            found = [
                InputSample(sample.line, reader.key(raw), raw, text)
                for text in expander.answer(sample, future)
                for raw in [orjson.loads(text)]
            ]
        except ValueError as error:
            reader.bad.add(sample.line, str(error))
            continue
        yield from found


def _numbered_blocks(config: Config) -> Iterator[tuple[bytes, int, int]]:
    """Arguments of :meth:`Scanner.scan`."""
    first, twice = 1, TWICE
    for block in read_blocks(config.data.input_jsonl):
        yield block, first, twice
        first, twice = first + block.count(b"\n"), 0


_scanner: Scanner
"""Of a scanning process."""


def _start(*arguments: Any) -> None:
    global _scanner
    _scanner = Scanner(*arguments)


def _scan(block: bytes, first: int, twice: int) -> ScannedBlock:
    return _scanner.scan(block, first, twice)


def check_deterministic(
    task: Task,
    sample: dict[str, Any],
    video: Any,
    requests: dict[str, str],
    sample_fields: Collection[str] = (),
) -> None:
    """Raise :class:`TaskError` if building the messages of ``sample`` again gives others."""
    if request_digests(task, sample, video, sample_fields) != requests:
        raise TaskError(
            f"task {task.name!r}: build_messages gave two different conversations for sample "
            f"{sample['__key']!r}; resume needs the same one each time. If it draws at random, "
            "seed it from the key: random.Random(sample['__key'])"
        )
