"""Writes the report page about a run: one HTML file that needs no other file.

Everything from outside (captions, keys, paths, messages) is data: the page holds it as packed JSON
and shows it as text. The page's policy allows only its own script, and loads nothing.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from video_pipeline.common.figures import Histogram, even_edges, weighted_quantile
from video_pipeline.common.files import read_object, write_text
from video_pipeline.common.printable import printable
from video_pipeline.common.progress import duration
from video_pipeline.config import Config
from video_pipeline.report.gallery import Sheet, make_sheets
from video_pipeline.report.plan import plan_facts
from video_pipeline.report.records import Tally, card, is_changed, map_texts
from video_pipeline.report.setup import setup_of, stage_links
from video_pipeline.report.summary import read_summary, summary_facts
from video_pipeline.report.timeline import time_line
from video_pipeline.run.answers import describe_cut_off, describe_damaged, describe_unparsed
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import check_origin
from video_pipeline.run.statistics import read_statistics

logger = logging.getLogger(__name__)

CHANGED = "the video was replaced after the run; the model saw the earlier one"
"""Why the gallery does not show a video that :func:`is_changed`."""

TOKEN_BINS = 30
"""Bars of a histogram of tokens, at most."""


def write_report(config: Config, layout: Layout, threads: int) -> None:
    """Write ``layout.report`` and ``layout.report_table`` about the finished output. Up to
    ``threads`` processes read the videos of the gallery again."""
    data = collect(config, layout, threads)
    write_text(layout.report, render(data))
    write_text(layout.report_table, _table(layout))
    size = layout.report.stat().st_size / 1e6
    logger.info("%s: %.1f MB, %d records shown", layout.report, size, len(data["cards"]))


def _table(layout: Layout) -> str:
    """The figures of the finished run, and of its plan, for Snakemake's own report."""
    rows = [("run", *fact) for fact in summary_facts(read_object(layout.summary))]
    if plan := read_object(layout.plan_report):
        rows += [("plan", name.strip(), text) for name, text in plan_facts(plan)]
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerows([("of", "figure", "value"), *rows])
    return table.getvalue()


def collect(config: Config, layout: Layout, threads: int) -> dict[str, Any]:
    """All data of the page. Raises :class:`UserError` if the output is not that of ``config``."""
    summary = read_summary(layout)
    check_origin(summary.get("origin", {}), config, layout.summary)
    tally = Tally.of(layout.output, config, summary["samples"]["damaged"])
    jobs = read_statistics(layout.journal_now(summary["journal"]), summary["splits"])
    chosen = tally.chosen
    cards = _cards(config, chosen, tally, jobs, threads)
    return {
        "title": layout.stem,
        "output": str(layout.output),
        "errors_file": layout.errors.name,
        "task": summary["task"],
        "model": summary["model"],
        "written": _moment(time.time()),
        "samples": summary["samples"],
        "cut_off": describe_cut_off(summary["samples"]["truncated_at"]),
        "damaged": describe_damaged(summary["samples"]["damaged"]),
        "unparsed": describe_unparsed(summary["samples"]["errors_by_stage"].get("parse", 0)),
        "usage": summary["usage"],
        "cost": summary["cost"],
        "throughput": summary["throughput"],
        "time": time_line(jobs),
        "histograms": [
            _seconds_histogram("Reading and preparing a sample", "samples", "decode_seconds", jobs),
            _seconds_histogram("A request in the engine", "requests", "engine_seconds", jobs),
            _token_histogram("Tokens of a prompt, visual ones included", tally.prompt_tokens),
            _token_histogram("Tokens of an answer", tally.completion_tokens),
        ],
        "error_groups": [vars(group) for group in tally.error_groups.by_count()],
        "gallery": {
            "answered": tally.ok,
            "chosen": len(chosen),
            "chosen_besides": len(chosen) - min(tally.ok, config.report.samples),
            "failed": tally.failed,
            "listed": len(tally.errors),
            "seed": config.report.seed,
        },
        "cards": cards,
        "setup": setup_of(config, layout, summary),
        "stages": stage_links(layout),
        "prompts": next((card["prompts"] for card in cards if card.get("prompts")), {}),
    }


def _cards(
    config: Config,
    chosen: list[dict[str, Any]],
    tally: Tally,
    jobs: list[dict[str, Any]],
    threads: int,
) -> list[dict[str, Any]]:
    """The records of the gallery, with their sheets; the failed ones come last."""
    seen = [*chosen, *tally.seen_errors]
    changed = [record for record in seen if is_changed(record, config, jobs)]
    sheets = {record["__key"]: vars(Sheet(problem=CHANGED)) for record in changed}
    pictured = [record for record in seen if record["__key"] not in sheets]
    for record, sheet in zip(pictured, make_sheets(config, pictured, threads), strict=True):
        sheets[record["__key"]] = vars(sheet)
    cards = [*(card(record, config) for record in chosen), *tally.errors]
    return [{**shown, **sheets.get(shown["key"], {})} for shown in cards]


# --- histograms ----------------------------------------------------------------------------------


QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def _seconds_histogram(
    title: str, unit: str, name: str, jobs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The histogram of the jobs' counts by :func:`time_bin`."""
    counts: Counter[int] = Counter()
    for job in jobs:
        for time_bin, count in job["histograms"][name].items():
            counts[int(time_bin)] += count
    histogram = Histogram.of_time_bins(counts)
    return _histogram(title, unit, "seconds", histogram, histogram.quantile)


def _token_histogram(title: str, counts: Counter[int]) -> dict[str, Any]:
    """The histogram of ``counts``: the number of samples by their number of tokens."""
    edges_of = partial(even_edges, bins=TOKEN_BINS)
    histogram = Histogram.of(list(counts), edges_of, list(counts.values()))
    quantile = partial(weighted_quantile, counts)
    return _histogram(title, "samples", "tokens", histogram, quantile)


def _histogram(
    title: str, of: str, unit: str, histogram: Histogram, quantile: Callable[[float], float]
) -> dict[str, Any]:
    total = sum(histogram.counts)
    return {
        "title": title,
        "of": of,
        "unit": unit,
        "edges": histogram.edges,
        "counts": histogram.counts,
        "total": total,
        "quantiles": {n: quantile(share) for n, share in QUANTILES.items()} if total else {},
    }


# --- HTML ----------------------------------------------------------------------------------------


def render(data: dict[str, Any]) -> str:
    """The page about ``data``, as :func:`collect` gives it."""
    folder = Path(__file__).parent
    names = ("page.css", "page.charts.js", "page.js")
    style, *scripts = ((folder / name).read_text("utf-8") for name in names)
    script = "".join(scripts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "duration": duration,
        "moment": _moment,
        "number": _number,
        "percent": _percent,
    }
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source(style)}; "
        f"script-src {_source(script)}; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        **data,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=_packed(data),
    )


def _packed(data: dict[str, Any]) -> str:
    """``data`` as base64 of compressed JSON: it takes little room, and no text acts as HTML."""
    compressed = gzip.compress(orjson.dumps(map_texts(data, printable)), mtime=0)
    return base64.b64encode(compressed).decode()


def _source(text: str) -> str:
    """The name of an element in a content security policy, by its content."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z", time.localtime(seconds))


def _number(value: float) -> str:
    if isinstance(value, int) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"
