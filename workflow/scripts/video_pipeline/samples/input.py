"""Reads samples: from the lines of the input JSONL to the dicts that tasks and datasets see."""

from __future__ import annotations

import json
import re
from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from video_pipeline.config import Config, Data
from video_pipeline.config.source import STORES, file_path, member_of, scheme_of
from video_pipeline.errors import UserError
from video_pipeline.samples.identity import content_key
from video_pipeline.samples.windows import CUT, is_window, window_id
from video_pipeline.storage.stores import check_address

SHOWN_ERRORS = 20
"""How many bad lines an error message shows."""

_SECONDS = {int, float}
_CREDENTIALS = re.compile("://[^/@]*@")
# orjson reads integers up to 64 bits exactly, and silently turns larger ones into floats. Only
# blocks with a run of 19 digits need the slower, exact check.
# It also silently keeps the last of two entries with the same name. A colon follows each name, so
# only lines that have more colons than names (texts may hold some) need the slower check.
_COLONS = (b'":', b" :", b"\t:", b"\r:")


@dataclass(slots=True)
class InputSample:
    """One line of the input."""

    line: int  # Its number, from 1.
    key: str  # The sample's __key: its id, or a hash of its content.
    raw: dict[str, Any]  # The object of the line; of a record, its input with ``previous``.
    text: bytes  # ``raw`` as JSON, on one line.
    is_key_kept: bool = False  # Whether the key is that of an earlier record.
    left_out: dict[str, str] | None = None  # Why it is not asked about, see why_left_out.


class BadLines:
    """The mistakes in an input, in the order of its lines."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[int, str]] = []  # Up to SHOWN_ERRORS of them.

    def add(self, line: int, why: str) -> None:
        """Count ``line`` as bad."""
        self.count += 1
        insort(self._first, (line, why))
        del self._first[SHOWN_ERRORS:]

    def merge(self, other: BadLines) -> None:
        """Count what ``other`` has counted, too."""
        self.count += other.count
        self._first = sorted(self._first + other._first)[:SHOWN_ERRORS]

    def raise_any(self, path: str) -> None:
        """Raise :class:`UserError` naming the bad lines of ``path``, if there are any."""
        if self.count:
            said = f"{path}: {self.count} bad line(s); nothing was started. Fix or remove them and "
            lines = [f"{said}run again.", *(f"line {line}: {why}" for line, why in self._first)]
            if more := self.count - len(self._first):
                lines.append(f"... and {more} more")
            raise UserError("\n  ".join(lines))


@dataclass
class InputReader:
    """Iterates over the valid samples of an input's block, and notes mistakes in other lines."""

    data: Data
    block: bytes  # Whole lines.
    first: int = 1  # The number of the first of them in the input.
    needs_video: bool = True  # Whether a sample without a video is bad.
    with_failed: bool = False  # Whether error records of an earlier run are samples.
    lines: int = 0  # Those that were read and are not blank.
    failed: int = 0  # Error records of an earlier run, unless they are samples.
    left_out: int = 0  # These, and the samples that the earlier run has left out.
    dropped: Counter[bool | None] = field(default_factory=Counter)  # By the condition's result.
    bad: BadLines = field(default_factory=BadLines)

    def __post_init__(self) -> None:
        self._video_field, self._id_field = self.data.video_field, self.data.id_field

    def __iter__(self) -> Iterator[InputSample]:
        check_numbers = _has_long_number(self.block)
        for line_number, line in enumerate(self.block.split(b"\n"), start=self.first):
            text = line.strip(b" \t\r\n")  # The whitespace of JSON.
            if not text or text.isspace():
                continue
            self.lines += 1
            try:
                raw = parse_object(text, check_numbers)
                if "__key" in raw and is_record(raw):
                    yield self._sample_of_record(line_number, raw)
                    continue
                yield InputSample(line_number, self.key(raw), raw, text)
            except ValueError as error:
                advice = "; `jq -c '.[]'` turns a list into lines" if text[:1] == b"[" else ""
                self.bad.add(line_number, f"{error}{advice}")

    def _sample_of_record(self, line_number: int, record: dict[str, Any]) -> InputSample:
        """The sample of an earlier record. It keeps its key, unless this run's samples have ids."""
        key, status = record["__key"], record["__status"]
        is_sample = status == "ok" or (status == "error" and self.with_failed)
        raw = record["input"] if status == "error" and is_sample else _with_previous(record)
        left_out = None if is_sample else why_left_out(record)
        if left_out is None:
            self._check(raw)
        else:
            self.failed += status == "error"
            self.left_out += 1
        is_kept = type(key) is str and key != "" and (self._id_field is None or not is_sample)
        key = key if is_kept else self.key(raw)
        return InputSample(line_number, key, raw, orjson.dumps(raw), is_kept, left_out)

    def _check(self, raw: dict[str, Any]) -> None:
        video = raw.get(self._video_field)
        if type(video) is not str or not video or "://" in video:
            self._check_video(raw)
        if "video_start" in raw or "video_end" in raw:
            _check_segment(raw)

    def _check_video(self, raw: dict[str, Any]) -> None:
        video = raw.get(self._video_field)
        paths: list[Any] = video if isinstance(video, list) else [video]
        if paths and all(isinstance(path, str) and path for path in paths):
            for path in paths:
                video_uri(path, "/")
        elif self.needs_video or video is not None:
            got = f"got {video!r:.80}" if self._video_field in raw else "it is missing"
            raise ValueError(
                f"no video: field {self._video_field!r} (data.video_field) must be a path, or a "
                f"list of paths of images, {got}"
            )

    def key(self, raw: dict[str, Any]) -> str:
        """``__key`` of a sample: the windows of a video share its id, so their times follow it.
        Raises :class:`ValueError` if its id is none, or ``raw`` is no input object of a sample."""
        self._check(raw)
        if self._id_field is None:
            return content_key(raw, self._video_field)
        value: Any = raw.get(self._id_field)
        if type(value) not in (str, int) or value == "":
            got = f"got {value!r:.80}" if self._id_field in raw else "it is missing"
            raise ValueError(f"no id: field {self._id_field!r} must be text or an integer, {got}")
        return window_id(value, raw) if is_window(raw) else str(value)


def parse_object(line: bytes, check_numbers: bool) -> dict[str, Any]:
    """Raises :class:`ValueError` if ``line`` is no JSON object, or cannot be kept as it is.
    ``check_numbers``: whether it may hold numbers of 19 digits."""
    try:
        value = orjson.loads(line)
        if check_numbers or _may_repeat_names(line, value):
            json.loads(line, parse_int=_exact_integer, object_pairs_hook=_distinct)
        if max(line.count(b"["), line.count(b"{")) > 100:  # orjson reads 1,024 levels, writes 254.
            orjson.dumps([value])  # As deep as a record of it.
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except (RecursionError, orjson.JSONEncodeError):
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _has_long_number(block: bytes) -> bool:
    """Whether 19 digits stand in a row somewhere."""
    run = np.frombuffer(block, np.uint8) - 48 < 10
    for step in (1, 2, 4, 8, 3):  # Runs of 2, 4, 8, 16 and 19 digits.
        run = run[:-step] & run[step:]
    return bool(run.any())


def _may_repeat_names(line: bytes, value: Any) -> bool:
    # The quickest check comes first: most lines hold one flat object and no other colons.
    if isinstance(value, dict) and line.count(b":") == len(value):
        return False
    return sum(map(line.count, _COLONS)) != _count_names(value)


def _count_names(value: Any) -> int:
    """Entries of all objects in ``value``."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_names, value.values()))
    return sum(map(_count_names, value)) if isinstance(value, list) else 0


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


def _check_segment(raw: dict[str, Any]) -> None:
    for name in CUT:
        value = raw.get(name)
        if value is not None and type(value) not in _SECONDS:
            raise ValueError(f"{name}: got {value!r:.80}, expected seconds")


def is_record(value: dict[str, Any]) -> bool:
    """Whether an object is a record of a consolidated output, with the sample as ``input``."""
    return "__status" in value and isinstance(value.get("input"), dict)


def _with_previous(record: dict[str, Any]) -> dict[str, Any]:
    """The sample of a record, with the other fields of the record under ``previous``."""
    sample = record["input"]
    previous = {name: entry for name, entry in record.items() if name != "input"}
    if "previous" in sample:  # The answer of the run before the earlier one.
        previous["previous"] = sample["previous"]
    return {**sample, "previous": previous}


def why_left_out(record: dict[str, Any]) -> dict[str, str]:
    """Why the sample of a ``record`` without an answer is not asked about: ``by`` ``error`` or
    ``where``, and a ``message``."""
    if isinstance(earlier := record.get("__left_out"), dict):
        return earlier
    error = record.get("__error")
    fields = error if isinstance(error, dict) else {}
    texts = [fields[name] for name in ("stage", "type", "message") if name in fields]
    return {"by": "error", "message": ": ".join(map(str, texts))}


def video_uri(video: str, root: str) -> str:
    """The address of a video: ``http(s)://`` and the address of a store as it is, ``file://`` and a
    path as an absolute local path. A relative path starts from ``root``, which may be an address.
    For a member of a tar or a row of Parquet, this holds for the file that it is in.

    Raises :class:`ValueError` for another scheme or a ``file://`` of another host.
    """
    if (parts := member_of(video)) is not None:
        return f"{video_uri(parts[0], root)}#{parts[1]}"
    scheme = scheme_of(video)
    if not scheme:
        if video.startswith("/"):
            return video
        return root + video if root.endswith("/") else f"{root}/{video}"
    if scheme in STORES:
        check_address(video)
        return video
    if scheme in ("http", "https"):
        urlsplit(video)  # Raises ValueError if this is no address.
        return video
    if (path := file_path(video)) is not None:
        return path
    address = _CREDENTIALS.sub("://***@", video)
    raise ValueError(
        f"{address!r:.200}: only local paths, file://, http(s)://, s3://, gs://, az:// and hf:// "
        "are read"
    )


def video_address(video: Any, root: str) -> str | list[str] | None:
    """The :func:`video_uri` of each path in a sample's video field: one path, or a list of them."""
    if isinstance(video, str):
        return video_uri(video, root)
    if isinstance(video, list):
        return [video_uri(path, root) for path in video]
    return None


def task_sample(key: str, raw: dict[str, Any], config: Config) -> dict[str, Any]:
    """The sample that tasks and datasets see: the input object plus ``__key`` and ``__video_uri``,
    the :func:`video_address` of its video."""
    address = video_address(raw.get(config.data.video_field), config.video_root)
    return {**raw, "__key": key, "__video_uri": address}
