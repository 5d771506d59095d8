"""Collects what the page shows of the output's records: counts of all, some answers, the errors."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.config import Config
from video_pipeline.report.error_groups import EXAMPLES, ErrorGroups
from video_pipeline.samples.input import task_sample
from video_pipeline.samples.windows import CUT

MOST_ERRORS, MOST_ERROR_BYTES = 5_000, 10_000_000
"""Failed samples that the page lists, besides the first of each group, and their size as JSON."""

LONG_TEXT = 20_000
"""Characters of an answer, at most."""

SHORT_TEXT = 500
"""Characters of a message and of a failed sample's texts, at most."""

LINE = 80
"""Characters of JSON that stay in one line, at most."""

STAGES_SEEN = frozenset({"generate", "length", "parse", "quarantine"})
"""Stages of errors after the video was read: its pictures can be shown."""


class Tally:
    """Counts and examples from one pass over the output, as many as the page shows.

    Attributes:
        ok: The number of answered samples.
        prompt_tokens: The number of samples by their number of prompt tokens.
        completion_tokens: Likewise, by their number of answer tokens.
        error_groups: The errors by their messages.
        errors: Cards of the first failed samples, and of the first of each group.
        seen_errors: Records of the first failed samples whose video was read.
    """

    def __init__(self, config: Config, num_damaged: int = 0) -> None:
        """``num_damaged``: that of the summary; 0 if a field ``damaged`` is the task's own."""
        self._config = config
        self._num_samples, seed = config.report.samples, config.report.seed
        self._answers = Selection(self._num_samples, seed)
        self._cut_off = Selection(self._num_samples // 4, seed)
        self._damaged = Selection(min(num_damaged, self._num_samples // 4), seed)
        self.ok = self.failed = 0
        self.prompt_tokens: Counter[int] = Counter()
        self.completion_tokens: Counter[int] = Counter()
        self.error_groups = ErrorGroups()
        self.errors: list[dict[str, Any]] = []
        self._error_bytes = 0
        self.seen_errors: list[dict[str, Any]] = []

    @classmethod
    def of(cls, output: Path, config: Config, num_damaged: int) -> Tally:
        """The tally of a consolidated output. It selects ``report.samples`` answered samples, a
        quarter as many whose answer was cut off, and as many whose video is damaged."""
        tally = cls(config, num_damaged)
        with open(output, "rb") as stream:
            for position, line in enumerate(stream):
                tally.add(position, line)
        return tally

    def add(self, position: int, line: bytes) -> None:
        """Count the record in the line at ``position`` of the output."""
        record = orjson.loads(line)
        if usage := record.get("__usage"):
            self.prompt_tokens[usage["prompt_tokens"]] += 1
            self.completion_tokens[usage["completion_tokens"]] += 1
        if record["__status"] == "ok":
            self.ok += 1
            self._answers.offer(record["__key"], position, line)
            if usage["finish_reason"] == "length":
                self._cut_off.offer(record["__key"], position, line)
            if record.get("damaged") is True:
                self._damaged.offer(record["__key"], position, line)
        elif record["__status"] == "error":
            self.failed += 1
            self._add_error(record)

    def _add_error(self, record: dict[str, Any]) -> None:
        error = record["__error"]
        short = {**error, "message": cut(error["message"], SHORT_TEXT)}
        path = _text(record["input"].get(self._config.data.video_field))
        group = self.error_groups.add(short, record["__key"], path)
        has_room = len(self.errors) < MOST_ERRORS and self._error_bytes < MOST_ERROR_BYTES
        if has_room or group.count <= EXAMPLES:
            self.errors.append({**card(record, self._config), "group": group.number})
            self._error_bytes += len(orjson.dumps(self.errors[-1]))
        if error["stage"] in STAGES_SEEN and len(self.seen_errors) < self._num_samples // 4:
            self.seen_errors.append(record)

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """The selected records, in input order."""
        lines = self._answers.lines | self._cut_off.lines | self._damaged.lines
        return [orjson.loads(lines[position]) for position in sorted(lines)]


class Selection:
    """A random selection of records: those with the smallest hashes of seed and key. The order of
    the records does not matter."""

    def __init__(self, most: int, seed: int) -> None:
        self._most = most
        self._seed = seed
        self._heap: list[tuple[int, int, bytes]] = []

    def offer(self, key: str, position: int, line: bytes) -> None:
        """Select the record of ``key``, at ``position``, if its hash is small enough so far."""
        digest = hashlib.blake2b(f"{self._seed} {key}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(digest), position, line)
        heapq.heappush(self._heap, entry)
        if len(self._heap) > self._most:
            heapq.heappop(self._heap)

    @property
    def lines(self) -> dict[int, bytes]:
        """The selected lines, by their positions."""
        return {position: line for _, position, line in self._heap}


def is_changed(record: dict[str, Any], config: Config, jobs: list[dict[str, Any]]) -> bool:
    """Whether the video of a record is a local file that was written after the last of ``jobs``
    (their statistics): then the model saw another one."""
    video = task_sample(record["__key"], record["input"], config)["__video_uri"]
    path = video.removeprefix("file://") if isinstance(video, str) else ""
    ended = max((job["updated_at"] for job in jobs), default=math.inf)
    return os.path.isfile(path) and os.path.getmtime(path) > ended


def card(record: dict[str, Any], config: Config) -> dict[str, Any]:
    """The texts of a record on the page. Failed records may be many, so theirs are short."""
    failed = record["__status"] == "error"
    raw = record["input"]
    # The fields of the task's answer.
    answer = {
        name: value
        for name, value in record.items()
        if not name.startswith("__") and name not in ("input", "output_text")
    }
    fields = _fields(answer)
    shown = {text for _, text in fields}
    card = {
        "key": record["__key"],
        "failed": failed,
        "path": _text(raw.get(config.data.video_field)),
        "span": [raw.get(name) for name in CUT] if any(name in raw for name in CUT) else None,
        "input": _json(raw),
        "fields": fields,
        "said": [
            [name, text]
            for name, text in _fields({"output_text": record.get("output_text")})
            if text and text.strip() not in shown  # Often a field of the task holds the same.
        ],
        "reasoning": _fields({"reasoning": record.get("__reasoning")}),
        "usage": list((record.get("__usage") or {}).values()),
        "error": list(record["__error"].values()) if failed else None,
    }
    most = SHORT_TEXT if failed else LONG_TEXT
    return {n: map_texts(value, lambda text: cut(text, most)) for n, value in card.items() if value}


def _fields(named: dict[str, Any]) -> list[list[str]]:
    """Names and texts. A value in a dict is named ``outer · inner``."""
    texts = []
    for name, value in named.items():
        if isinstance(value, dict) and value:
            texts += [[f"{name} · {inner}", text] for inner, text in _fields(value)]
        elif value is not None:
            texts.append([name, _text(value)])
    return texts


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "\n".join(f"• {item}" for item in value)
    return "" if value is None else _json(value)


def _json(value: Any) -> str:
    """JSON for people: short JSON in one line, a list of short items with one item a line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) <= LINE:
        return line
    if isinstance(value, list):
        lines = [json.dumps(item, ensure_ascii=False) for item in value]
        if max(map(len, lines)) <= LINE:
            return "[\n" + ",\n".join(f"  {line}" for line in lines) + "\n]"
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def cut(text: str, most: int) -> str:
    """``text``; only the first ``most`` characters of a longer text, and how many it has."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … (the first {most:,} of {len(text):,} characters)"


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """``value`` with every text in it changed, also the keys of dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): map_texts(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(item, change) for item in value]
    return value
