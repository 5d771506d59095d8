"""Reads the summary of a run, and shows it as a table. docs/numbers.md explains each number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from video_pipeline.common.files import Seal
from video_pipeline.common.printable import printable
from video_pipeline.common.progress import duration
from video_pipeline.common.versions import SUMMARY, check_version
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout


def read_summary(layout: Layout) -> dict[str, Any]:
    """The summary of the consolidated output. Raises :class:`UserError` if there is none, it is
    damaged, or it describes another output."""
    try:
        summary: dict[str, Any] = json.loads(layout.summary.read_text(encoding="utf-8"))
        check_version(layout.summary, summary.get("version"), SUMMARY)
        seal = Seal(**summary["output_file"])
        for name in _COUNTS:
            summary["samples"][name]
        for name in ("damaged", "dropped"):  # An earlier version did not count these.
            summary["samples"].setdefault(name, 0)
        for name in _KEYS:
            summary[name]
    except FileNotFoundError:
        raise UserError(f"{layout.summary} does not exist yet; run snakemake first") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(
            f"{layout.summary} is damaged, or was written by an earlier version. Remove it and run "
            "snakemake again; that infers again what an earlier version answered"
        ) from None
    if not layout.output.exists():
        raise UserError(f"{layout.output} does not exist; run snakemake first")
    if not seal.fits(layout.output):
        raise UserError(
            f"{layout.output}: it has changed since {layout.summary.name} was written beside it. "
            "Remove it and run snakemake again (nothing is inferred twice); if you edited it on "
            "purpose, first save your copy under another name"
        )
    return summary


_UNKNOWN = "not known"
"""The text for figures that an earlier version did not write."""

_KEYS = ("task", "model", "samples", "usage", "cost", "throughput", "journal", "splits")
_COUNTS = ("distinct", "ok", "error", "errors_by_stage", "truncated_at")
_PACE = ("seconds", "videos_per_second", "tokens_per_second", "engine_busy_share")
_COST = ("video_hours", "wall_seconds", "gpu_hours", "videos_per_second_per_gpu")
_IN_WORDS = {"parse": "parse: fix it, the answers are there"}

_Cell = str | Text
_Rows = list[tuple[_Cell, _Cell]]


def summary_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The names and figures of a summary."""
    rows = (row for section in _sections(summary) for row in section)
    return [(str(name).strip(), str(value)) for name, value in rows]


def summary_table(path: Path, *, is_titled: bool = True) -> Table:
    """The table of the summary in ``path``, titled with its output."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    output = printable(summary.get("output", path.name))
    table = Table(title=output if is_titled else None, show_header=False, title_justify="left")
    table.add_column(style="dim")
    table.add_column(justify="right")
    for section in _sections(summary):
        for name, value in section:
            table.add_row(name, value)
        table.add_section()
    return table


def _sections(summary: dict[str, Any]) -> list[_Rows]:
    samples, usage = summary.get("samples", {}), summary.get("usage", {})
    counts: _Rows = [
        ("samples", _number(samples, "distinct")),
        ("answered", _number(samples, "ok")),
        ("failed", _number(samples, "error")),
    ]
    stages, cut_off = samples.get("errors_by_stage", {}), samples.get("truncated_at", {})
    for words, count in (
        *((f"  {_IN_WORDS.get(stage, stage)}", stages[stage]) for stage in sorted(stages)),
        *((f"cut off: raise {key}", cut_off[key]) for key in sorted(cut_off)),
        ("damaged: only a part could be read", samples.get("damaged")),
        ("duplicate lines", samples.get("duplicates")),
        ("left out", samples.get("left_out")),
        ("dropped by data.where", samples.get("dropped")),
    ):
        if count:
            style = "not dim yellow" if words.startswith(("  parse", "cut off", "damaged")) else ""
            counts.append((Text(words, style), Text(f"{count:,}", style)))
    tokens: _Rows = [
        ("prompt tokens", _number(usage, "prompt_tokens")),
        ("answer tokens", _number(usage, "completion_tokens")),
    ]
    if "sound_tokens" in usage:
        tokens.insert(1, ("  of these, sound", _number(usage, "sound_tokens")))
    pace, cost = summary.get("throughput", {}), summary.get("cost", {})
    bound = pace.get("bound", _UNKNOWN)
    if not (pace.keys() >= set(_PACE) and cost.keys() >= set(_COST)):
        return [counts, tokens, [("this run", bound)]]
    unit = "GPU" if cost["gpu_hours"] else "job"
    spent: _Rows = [
        ("video-hours", f"{cost['video_hours']:,.2f}"),
        ("wall time", duration(cost["wall_seconds"])),
        ("GPU-hours", f"{cost['gpu_hours']:,.2f}"),
        *(("  of", printable(card)) for card in pace.get("cards", ())),
        ("bound", bound),
    ]
    running: _Rows = [
        ("models running", duration(pace["seconds"])),
        ("  answered/s", f"{pace['videos_per_second']:,.2f}"),
    ]
    rate = cost["videos_per_second_per_gpu"]
    if not math.isclose(rate, pace["videos_per_second"], rel_tol=0.01):
        running.append((f"  answered/s per {unit}", f"{rate:,.2f}"))
    running.append(("  tokens/s", f"{pace['tokens_per_second']:,.0f}"))
    if (rate := pace.get("prompt_tokens_per_second_per_gpu")) is not None:
        running.append(("  prompt tokens/s per GPU", f"{rate:,.0f}"))
    if (share := pace.get("share_of_peak")) is not None:
        running.append(("  of the GPU's peak", f"{share:.1%}"))
    running += [
        ("  engine busy", f"{pace['engine_busy_share']:.1%}"),
        ("  decoding busy", f"{pace.get('decode_workers_load', 0):.1%}"),
    ]
    return [counts, tokens, spent, running]


def _number(values: dict[str, Any], name: str) -> str:
    return f"{values[name]:,}" if name in values else _UNKNOWN
