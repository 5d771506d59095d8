"""Samples: from the lines of the input JSONL to the dicts that tasks and datasets see."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import orjson
import zstandard

from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.identity import content_key

SHOWN_ERRORS = 20
"""How many bad lines an error message shows."""

_UTF8_BOM = b"\xef\xbb\xbf"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_CREDENTIALS = re.compile("://[^/@]*@")
# orjson reads integers up to 64 bits exactly and turns larger ones into floats without a word;
# only lines with so long a run of digits need the slower, exact check.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
# It also keeps the last of two entries of one name without a word. A colon follows each name, so
# only lines that have more colons than names (texts may hold some) need the slower check.
_COLONS = (b'":', b" :", b"\t:", b"\r:")


@dataclass(frozen=True, slots=True)
class InputSample:
    """One line of the input.

    Attributes:
        line: Line number, from 1.
        key: ``__key`` of the sample: its id, or a hash of its content.
        content: Hash of the content.
        raw: The object of the line; for a record of a consolidated output, its ``input`` with the
            rest under ``previous``.
    """

    line: int
    key: str
    content: str
    raw: dict[str, Any]


class InputReader:
    """Iterates over the valid samples of an input file and counts what is wrong with the others.

    Attributes:
        lines: Lines read that were not blank.
        left_out: Error records of an earlier run's output, which are no samples.
        num_errors: Bad lines, and samples that contradict an earlier one (see :meth:`reject`).
    """

    def __init__(self, config: Config) -> None:
        self._path = config.data.input_jsonl
        self._video_field = config.data.video_field
        self._id_field = config.data.id_field
        self.lines = 0
        self.left_out = 0
        self.num_errors = 0
        self._messages: list[str] = []

    def __iter__(self) -> Iterator[InputSample]:
        for number, line in enumerate(read_lines(self._path), start=1):
            if not line.strip():
                continue
            self.lines += 1
            try:
                raw = _unwrap(_parse(line))
                if raw is None:
                    self.left_out += 1
                    continue
                self._check_video(raw)
                content = content_key(raw)
                yield InputSample(number, self._key(raw, content), content, raw)
            except ValueError as error:
                self.reject(number, str(error))

    def reject(self, line: int, why: str) -> None:
        """Count ``line`` as bad; :meth:`raise_errors` reports it."""
        self.num_errors += 1
        if len(self._messages) < SHOWN_ERRORS:
            self._messages.append(f"line {line}: {why}")

    def raise_errors(self) -> None:
        """Raise :class:`UserError` naming the bad lines, if there were any."""
        if self.num_errors:
            more = self.num_errors - len(self._messages)
            tail = [f"... and {more} more"] if more else []
            raise UserError(
                "\n  ".join(
                    [
                        f"{self._path}: {self.num_errors} bad line(s); nothing was started. "
                        "Mend or remove them and run again.",
                        *self._messages,
                        *tail,
                    ]
                )
            )

    def _check_video(self, raw: dict[str, Any]) -> None:
        video = raw.get(self._video_field)
        if not isinstance(video, str) or not video:
            got = f"got {video!r:.80}" if self._video_field in raw else "it is missing"
            raise ValueError(f"no video: field {self._video_field!r} must be a path, {got}")
        video_uri(video, Path("/"))
        for field in ("video_start", "video_end"):
            value = raw.get(field)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise ValueError(f"{field}: got {value!r:.80}, expected seconds")

    def _key(self, raw: dict[str, Any], content: str) -> str:
        if self._id_field is None:
            return content
        value = raw.get(self._id_field)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            got = f"got {value!r:.80}" if self._id_field in raw else "it is missing"
            raise ValueError(f"no id: field {self._id_field!r} must be text or an integer, {got}")
        return str(value)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain, ``.gz`` or ``.zst`` file, without a leading byte-order mark.

    Raises :class:`UserError` where the file cannot be read.
    """
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            for number, line in enumerate(_decompressed(path, file)):
                yield line.removeprefix(_UTF8_BOM) if number == 0 else line
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _decompressed(path: Path, file: BinaryIO) -> Iterable[bytes]:
    """The lines of an open file, whatever its suffix says it is compressed with."""
    if path.suffix == ".gz":
        return gzip.open(file, "rb")
    if path.suffix == ".zst":
        return _zst_lines(file)
    return file


def _zst_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of the zstd frames in ``file``. Raises :class:`EOFError` if the last is cut off
    (zstandard's own stream reader takes that for the end)."""
    frame, begun, rest = zstandard.ZstdDecompressor().decompressobj(), False, b""
    while data := file.read(1 << 20):
        while data:
            lines = (rest + frame.decompress(data)).split(b"\n")
            rest = lines.pop()
            yield from (line + b"\n" for line in lines)
            data, begun = b"", True
            if frame.eof:
                data, begun = frame.unused_data, False
                frame = zstandard.ZstdDecompressor().decompressobj()
    if begun:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
    if rest:
        yield rest


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
        colons = sum(map(line.count, _COLONS))
        if _LONG_NUMBER.search(line) or colons != _count_names(value):
            json.loads(line, parse_int=_exact_integer, object_pairs_hook=_distinct)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _count_names(value: Any) -> int:
    """Entries of all objects in ``value``."""
    if isinstance(value, dict):
        count, parts = len(value), value.values()
    else:
        count, parts = 0, value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, dict | list):
            count += _count_names(part)
    return count


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice!r:.80} is there twice; one of the two would be lost")
    return entries


def _exact_integer(literal: str) -> int:
    value = int(literal) if len(literal) < 30 else 1 << 65
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(
            f"the number {literal:.40} does not fit into 64 bits, JSON cannot carry it exactly; "
            "write it as text"
        )
    return value


def _unwrap(value: dict[str, Any]) -> dict[str, Any] | None:
    """The sample in ``value``; None for an error record of an earlier run.

    A record of a consolidated output holds its sample under ``input``; what the earlier run said
    about it goes under ``previous``.
    """
    if not ("__key" in value and "__status" in value and isinstance(value.get("input"), dict)):
        return value
    if value["__status"] != "ok":
        return None
    sample, said = value["input"], {n: entry for n, entry in value.items() if n != "input"}
    if "previous" in sample:  # what the run before that said
        said["previous"] = sample["previous"]
    return {**sample, "previous": said}


def video_uri(video: str, root: Path) -> str:
    """The address of a video: ``http(s)://`` as it is, everything else as an absolute local path.

    Raises :class:`ValueError` for another scheme or a ``file://`` of another host.
    """
    if not _SCHEME.match(video):
        return os.path.join(root, video)
    parts = urlsplit(video)
    if parts.scheme.lower() in ("http", "https"):
        return video
    if parts.scheme.lower() == "file" and parts.netloc in ("", "localhost"):
        return unquote(parts.path)
    address = _CREDENTIALS.sub("://***@", video)
    raise ValueError(f"{address!r:.200}: only local paths, file:// and http(s):// are read")


def task_sample(key: str, raw: dict[str, Any], config: Config) -> dict[str, Any]:
    """What tasks and datasets see: the input object plus ``__key`` and ``__video_uri``."""
    uri = video_uri(raw[config.data.video_field], config.video_root)
    return {**raw, "__key": key, "__video_uri": uri}
