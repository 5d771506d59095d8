"""Identifies the files of a model, wherever they lie and whenever they were copied.

The content of its files identifies a folder, and only a part is read: all of a small file; the
size, the header and some samples of weights. Two checkpoints of one training differ only in their
numbers, so header and size would not tell them apart. Its commit identifies a folder in the hub's
cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

WHOLE_BYTES = 16 << 20
"""A file up to this size is read as a whole; tokenizers and most adapters are."""

SAMPLES = 512
"""Places at which the weights of a folder are sampled, in all files together."""

SAMPLE_BYTES = 1 << 12

END_BYTES = 1 << 20
"""Bytes that are read at both ends of weights other than safetensors: a checkpoint of torch ends
with the checksums of its tensors, and GGUF begins with its metadata."""

_NOT_READ = re.compile(
    r"\..*|__pycache__|.*\.(md|pyc|lock|png|jpe?g|gif|svg|webp|pdf|mp4)|(LICENSE|NOTICE).*", re.I
)
"""Files that no engine reads. One copy of a model may have them, and another may not."""

_HUB_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{40})$")


def model_files(path: Path) -> dict[str, str] | None:
    """A digest of each file of a model, by its path in the folder ``path`` (of a single file: by
    its name), or the commit of a folder in the hub's cache, by the name on the hub. None if nothing
    is there."""
    if path.is_file():
        return {path.name: _digest(path, SAMPLES)}
    if not path.is_dir():
        return None
    if snapshot := _HUB_SNAPSHOT.search(os.path.realpath(path)):
        return {snapshot[1].replace("--", "/", 1): snapshot[2]}
    files = dict(sorted(_files(path)))
    sampled = sum(_size(file) > WHOLE_BYTES for file in files.values())
    samples = max(4, SAMPLES // max(1, sampled))
    return {name: _digest(file, samples) for name, file in files.items()}


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield each file that an engine may read, with its path in ``folder``; links are followed."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _NOT_READ.fullmatch(name)]
        for name in files:
            if not _NOT_READ.fullmatch(name):
                file = Path(parent, name)
                yield str(file.relative_to(folder)), file


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # It is a dangling link.
        return 0


def _digest(file: Path, samples: int) -> str:
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= WHOLE_BYTES:
                parts = [(0, size)]
            elif file.suffix == ".safetensors":
                parts = _safetensors_spans(stream, size, samples)
            else:
                parts = _even_spans(size, samples)
            digest = hashlib.blake2b(digest_size=16)
            for begin, count in parts:
                digest.update(_read(stream, begin, count))
            return f"{size} {digest.hexdigest()}"
    except FileNotFoundError:
        return "missing"


def _read(stream: BinaryIO, begin: int, count: int) -> bytes:
    stream.seek(begin)
    return stream.read(max(count, 0))  # A damaged header may give a negative length.


def _safetensors_spans(stream: BinaryIO, size: int, samples: int) -> list[tuple[int, int]]:
    """The begin and length of the header, and of the middle of some tensors. The hash of a tensor's
    name draws it, so that every kind of tensor has a chance although layers repeat."""
    length = int.from_bytes(_read(stream, 0, 8), "little")
    if length > _LONGEST_HEADER:
        return _even_spans(size, samples)
    try:
        header = json.loads(_read(stream, 8, length))
        spans = {
            name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"
        }
        drawn = sorted(spans, key=lambda name: hashlib.blake2b(name.encode()).digest())[:samples]
        parts = [(0, 8 + length)]
        for name in drawn:
            begin, end = spans[name]
            count = min(SAMPLE_BYTES, end - begin)
            parts.append((8 + length + (begin + end - count) // 2, count))
        return parts
    except (ValueError, KeyError, TypeError, AttributeError):
        return _even_spans(size, samples)  # It is not safetensors, despite its name.


_LONGEST_HEADER = 100_000_000
"""Bytes of a header of safetensors; their own reader refuses a longer one."""


def _even_spans(size: int, samples: int) -> list[tuple[int, int]]:
    """The begin and length of both ends, and of places at even distances between them."""
    step = max(1, size // (samples + 1))
    places = [(begin, SAMPLE_BYTES) for begin in range(END_BYTES, size - END_BYTES, step)]
    return [(0, END_BYTES), *places, (size - END_BYTES, END_BYTES)]
