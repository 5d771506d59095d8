"""Writes the settings of a journal beside it, and tells how those of a run differ from the last
ones, so that the user reads it before anything is inferred again."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from video_pipeline.common.files import write_text
from video_pipeline.common.versions import check_version
from video_pipeline.journal.format import count_answers
from video_pipeline.run.fingerprint import BASELINE
from video_pipeline.run.layout import Layout

logger = logging.getLogger(__name__)

FILE = "settings.json"
"""The name of the file with the settings."""

VERSION = 1
"""The version of that file."""

_LONGEST_VALUE = 40

_FILE_DIGEST = re.compile(r'"([0-9a-f]{32}|\d+ bytes, \d+)"')
"""See :func:`video_pipeline.run.origin.file_digest`, as JSON."""

_IN_REQUESTS = ("task_params.", "data.id_field", "data.video_field")
"""Settings that change the requests."""


@dataclass(frozen=True)
class JournalSettings:
    """The settings of the journal in ``folder``, by key."""

    folder: Path
    fingerprint: dict[str, Any]  # The parts of its fingerprint: settings, dataset, reader.
    asked: dict[str, Any]  # The parts of the requests: task, names of samples, code, prompts.
    input: str | None  # The digest of the input at the last split.
    root: str | None  # Where relative paths started from then; None in earlier versions.

    @classmethod
    def of(
        cls, folder: Path, fingerprint: Mapping[str, Any], origin: Mapping[str, Any], root: str
    ) -> JournalSettings:
        """The settings of a split. ``origin`` comes from
        :func:`video_pipeline.run.origin.origin_of`."""
        files = dict(origin["files"])
        input_digest = files.pop(origin["input"], None)
        settings = {n: v for n, v in origin["settings"].items() if n.startswith(_IN_REQUESTS)}
        asked = {"task": origin["task"], **settings, **files}
        values = orjson.dumps(dict(fingerprint), option=orjson.OPT_NON_STR_KEYS)
        return cls(folder, orjson.loads(values), asked, input_digest, root)

    def write(self) -> None:
        """Write :data:`FILE`."""
        values = {"version": VERSION, **vars(self)}
        del values["folder"]
        text = json.dumps(values, indent=2, ensure_ascii=False)
        write_text(self.folder / FILE, text + "\n")

    @classmethod
    def last(cls, layout: Layout) -> JournalSettings | None:
        """The settings of the last split of an output that resumes; None if absent or damaged."""
        paths = [folder / FILE for folder in _resumable(layout.journal) if (folder / FILE).exists()]
        if not paths:
            return None
        path = max(paths, key=lambda path: path.stat().st_mtime_ns)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            check_version(path, values.get("version"), VERSION)
            then = values["fingerprint"], values["asked"], values["input"], values.get("root")
            return cls(path.parent, *then)
        except (OSError, ValueError, LookupError, AttributeError):
            return None

    def changes(self, earlier: JournalSettings) -> list[str]:
        """The keys that differ from the ``earlier`` settings, with short values."""
        changed = dict.fromkeys(different(earlier.fingerprint, self.fingerprint))
        changed |= dict.fromkeys(different(earlier.asked, self.asked))
        then = {**earlier.asked, **earlier.fingerprint}
        now = {**self.asked, **self.fingerprint}
        return describe(changed, then, now)


def _resumable(journal: Path) -> list[Path]:
    """The journals of an output, without those of runs without resume."""
    return [path for path in journal.glob("*") if "-" not in path.name]


def different(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose values differ."""
    return sorted(name for name in {**then, **now} if then.get(name) != now.get(name))


def describe(names: Iterable[str], then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Each of ``names`` with its values ``then`` and ``now``, if they are short."""
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
    if max(map(len, shown)) > _LONGEST_VALUE or any(map(_FILE_DIGEST.fullmatch, shown)):
        return ""
    return f" ({shown[0]} -> {shown[1]})"


def warn_of_changes(
    now: JournalSettings, earlier: JournalSettings | None, pending: int, samples: int
) -> None:
    """Log what has changed since the ``earlier`` split, and what that costs. ``earlier`` is None if
    its settings are not known."""
    if earlier is not None and pending < samples and earlier.root not in (None, now.root):
        logger.warning(
            "relative paths start from %s now, and started from %s before: of %s finished samples, "
            "those with such paths keep the answers about the videos there. For other videos, "
            "choose another output (output=...)",
            *(now.root, earlier.root, f"{samples - pending:,}"),
        )
    if pending and earlier is None:
        others = [path for path in _resumable(now.folder.parent) if path != now.folder]
        if answers := sum(map(count_answers, others)):
            logger.warning(
                "%s has %s answers of an earlier version, or with a damaged %s. They are not used, "
                "because it is not known for which settings they are: %s of %s samples will be "
                "inferred. The CHANGELOG says what changed with a version",
                *(now.folder.parent, f"{answers:,}", FILE, f"{pending:,}", f"{samples:,}"),
            )
    elif pending and earlier is not None and (changed := now.changes(earlier)):
        answers = count_answers(earlier.folder)
        if now.folder == earlier.folder:
            answers = max(0, answers - (samples - pending))
        note = "" if now.input == earlier.input else " (the input has changed, too)"
        logger.warning(
            f"changed since the last split: {', '.join(changed)}: {pending:,} of {samples:,} "
            f"samples will be inferred{note}; {answers:,} answers stay under the old settings"
        )
