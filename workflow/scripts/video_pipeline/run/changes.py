"""What a journal stands for, written beside it, and what has changed since the last one: said
before anything is inferred again. Imported while Snakemake parses the workflow: keep it light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.files import write_text
from video_pipeline.layout import Layout
from video_pipeline.run.fingerprint import BASELINE
from video_pipeline.versions import check_version

FILE = "settings.json"
"""Beside the files of a journal."""

VERSION = 1
"""Of that file."""

_LONGEST_VALUE = 40

_OF_A_FILE = re.compile(r'"([0-9a-f]{32}|\d+ bytes, \d+)"')
"""What stands for the content of one, see :func:`video_pipeline.run.origin.file_digest`."""

_OF_REQUESTS = ("task_params.", "data.id_field", "data.video_field")


@dataclass(frozen=True)
class JournalSettings:
    """What a journal stands for.

    Attributes:
        folder: The folder of the journal.
        fingerprint: The settings, the dataset and the reader that its name is a digest of, by key.
        asked: The task, its parameters, how samples are named, the user's code and prompts: what is
            asked about each sample comes from them.
        input: What stands for the input of the last split.
    """

    folder: Path
    fingerprint: dict[str, Any]
    asked: dict[str, Any]
    input: str | None

    @classmethod
    def of(
        cls, folder: Path, fingerprint: Mapping[str, Any], origin: Mapping[str, Any]
    ) -> JournalSettings:
        """Of a split; ``origin`` is its :func:`video_pipeline.run.origin.origin_of`."""
        files = dict(origin["files"])
        source = files.pop(origin["input"], None)
        settings = {n: v for n, v in origin["settings"].items() if n.startswith(_OF_REQUESTS)}
        asked = {"task": origin["task"], **settings, **files}
        values = orjson.dumps(dict(fingerprint), option=orjson.OPT_NON_STR_KEYS)
        return cls(folder, orjson.loads(values), asked, source)

    def write(self) -> None:
        """Write :data:`FILE`."""
        values = {
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "asked": self.asked,
            "input": self.input,
        }
        text = json.dumps(values, indent=2, ensure_ascii=False)
        write_text(self.folder / FILE, text + "\n")

    @classmethod
    def last(cls, layout: Layout) -> JournalSettings | None:
        """Those of the last split of an output, None if there was none (that goes on)."""
        paths = [path for path in layout.journal.glob(f"*/{FILE}") if "-" not in path.parent.name]
        if not paths:
            return None
        path = max(paths, key=lambda each: each.stat().st_mtime_ns)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            check_version(path, values.get("version"), VERSION)
            return cls(path.parent, values["fingerprint"], values["asked"], values["input"])
        except (OSError, ValueError, LookupError, AttributeError):
            return None  # damaged: then nothing is known

    def changes(self, earlier: JournalSettings) -> list[str]:
        """What is not as it was ``earlier``, key by key, with the values that are short."""
        changed = dict.fromkeys(different(earlier.fingerprint, self.fingerprint))
        changed |= dict.fromkeys(different(earlier.asked, self.asked))
        then = {**earlier.asked, **earlier.fingerprint}
        now = {**self.asked, **self.fingerprint}
        return describe(changed, then, now)


def different(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what differs."""
    return sorted(name for name in {**then, **now} if then.get(name) != now.get(name))


def describe(names: Iterable[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each of ``names``, with what it was and is where that is short."""
    return [
        name + _values(then.get(name, BASELINE.get(name)), now.get(name, BASELINE.get(name)))
        for name in names
    ]


def _values(then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        names = different(then, now)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return f" ({', '.join(map(str, names[:3]))}{more})"
    shown = [json.dumps(value, ensure_ascii=False) for value in (then, now)]
    if max(map(len, shown)) > _LONGEST_VALUE or any(map(_OF_A_FILE.fullmatch, shown)):
        return ""
    return f" ({shown[0]} -> {shown[1]})"


def consequences(
    changed: list[str], pending: int, samples: int, answers: int, *, same_input: bool
) -> str:
    """What a run will do about it. ``answers``: those that are there and are not used."""
    again = "again" if same_input else "(the input has changed, too)"
    return (
        f"changed since the last split: {', '.join(changed)}: {pending:,} of {samples:,} samples "
        f"will be inferred {again}; {answers:,} answers stay under the old settings"
    )
