"""Which model it is: what stands for its weights, wherever they lie and whenever they were copied.

A folder is known by the content of its files, of which little is read: all of a small file, of
weights their size, header and some samples. Two checkpoints of one training differ in nothing but
their numbers, so header and size alone would not tell them apart. A model of the hub, also one that
is named by its folder in the hub's cache, is known by its commit.
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
"""Places at which the weights of a folder are sampled, all files together."""

SAMPLE_BYTES = 1 << 12

END_BYTES = 1 << 20
"""Read at both ends of weights that are no safetensors: a checkpoint of torch ends with the
checksums of its tensors, and GGUF begins with its metadata."""

_NOT_READ = re.compile(
    r"\..*|__pycache__|.*\.(md|pyc|lock|png|jpe?g|gif|svg|webp|pdf|mp4)|(LICENSE|NOTICE).*", re.I
)
"""Files that no engine reads, which one copy of a model has and another has not."""

_HUB_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{40})$")


def model_files(path: Path) -> dict[str, str] | None:
    """What stands for the content of each file of a model, by its place in the folder ``path``
    (of a single file: by its name). None if nothing is there."""
    if path.is_file():
        return {path.name: _digest(path, SAMPLES)}
    if not path.is_dir():
        return None
    if (snapshot := hub_snapshot(path)) is not None:
        name, commit = snapshot
        return {name: commit}
    found = dict(sorted(_files(path)))
    sampled = sum(_size(file) > WHOLE_BYTES for file in found.values())
    return {
        place: _digest(file, max(4, SAMPLES // max(1, sampled))) for place, file in found.items()
    }


def hub_snapshot(path: Path) -> tuple[str, str] | None:
    """The name and the commit of a model whose folder lies in the cache of the hub."""
    found = _HUB_SNAPSHOT.search(os.path.realpath(path))
    return (found[1].replace("--", "/", 1), found[2]) if found else None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each file that an engine may read, links followed, by its place."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _NOT_READ.fullmatch(name)]
        for name in files:
            if not _NOT_READ.fullmatch(name):
                file = Path(parent, name)
                yield str(file.relative_to(folder)), file


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # a dangling link
        return 0


def _digest(file: Path, samples: int) -> str:
    try:
        with open(file, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size <= WHOLE_BYTES:
                parts = [(0, size)]
            elif file.suffix == ".safetensors":
                parts = _of_safetensors(stream, size, samples)
            else:
                parts = _of_other_weights(size, samples)
            digest = hashlib.blake2b(digest_size=16)
            for begin, count in parts:
                digest.update(_read(stream, begin, count))
            return f"{size} {digest.hexdigest()}"
    except FileNotFoundError:
        return "missing"


def _read(stream: BinaryIO, begin: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.pread(stream.fileno(), count - len(data), begin + len(data))
        if not more:
            break
        data += more
    return data


def _of_safetensors(stream: BinaryIO, size: int, samples: int) -> list[tuple[int, int]]:
    """Where to read: the header, and the middle of some tensors. These are drawn by the hash of
    their names, so that no kind of tensor is left out because the layers repeat."""
    length = int.from_bytes(_read(stream, 0, 8), "little")
    if length > _LONGEST_HEADER:
        return _of_other_weights(size, samples)
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
    except (ValueError, KeyError, TypeError, AttributeError):  # no safetensors, despite its name
        return _of_other_weights(size, samples)


_LONGEST_HEADER = 100_000_000
"""Of safetensors; a longer one is refused by its own reader."""


def _of_other_weights(size: int, samples: int) -> list[tuple[int, int]]:
    """Where to read: both ends, and places at even distances between them."""
    step = max(1, size // (samples + 1))
    places = [(begin, SAMPLE_BYTES) for begin in range(END_BYTES, size - END_BYTES, step)]
    return [(0, END_BYTES), *places, (size - END_BYTES, END_BYTES)]
