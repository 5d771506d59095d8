"""The report page about a run: one HTML file that needs no other.

Everything from outside (captions, keys, paths, messages) is data: the page holds it as packed JSON
and shows it as text. The page's policy allows no script but its own, and nothing from outside.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from video_pipeline.answers import describe_cut_off, describe_unparsed
from video_pipeline.config import Config
from video_pipeline.files import write_text
from video_pipeline.layout import Layout
from video_pipeline.printable import printable
from video_pipeline.progress import duration
from video_pipeline.report.gallery import make_sheets
from video_pipeline.report.records import Tally, card, map_texts
from video_pipeline.report.summary import read_summary
from video_pipeline.report.timeline import time_line
from video_pipeline.run.origin import check_origin
from video_pipeline.statistics import BINS_PER_OCTAVE, read_statistics

logger = logging.getLogger(__name__)

TOKEN_BINS = 30
"""Bars of a histogram of tokens, at most."""


def write_report(config: Config, layout: Layout, threads: int) -> None:
    """Write ``layout.report`` about the finished output. Up to ``threads`` processes read the
    videos of the gallery again."""
    data = collect(config, layout, threads)
    write_text(layout.report, render(data))
    size = layout.report.stat().st_size / 1e6
    logger.info("%s: %.1f MB, %d records shown", layout.report, size, len(data["cards"]))


def collect(config: Config, layout: Layout, threads: int) -> dict[str, Any]:
    """All data of the page. Raises :class:`UserError` if the output is not of ``config``."""
    summary = read_summary(layout)
    check_origin(summary.get("origin", {}), config, layout.summary)
    tally = Tally.of(layout.output, config)
    jobs = read_statistics(Path(summary["journal"]), summary["splits"])
    chosen = tally.chosen
    return {
        "title": layout.stem,
        "output": str(layout.output),
        "errors_file": layout.errors.name,
        "task": summary["task"],
        "model": summary["model"],
        "written": _moment(time.time()),
        "samples": summary["samples"],
        "cut_off": describe_cut_off(summary["samples"]["truncated_at"]),
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
        "classes": sorted(map(vars, tally.classes.values()), key=lambda row: -row["count"]),
        "gallery": {
            "answered": tally.ok,
            "chosen": len(chosen),
            "chosen_cut_off": tally.chosen_cut_off,
            "failed": tally.failed,
            "listed": len(tally.errors),
            "seed": config.report.seed,
        },
        "cards": _cards(config, chosen, tally, threads),
    }


def _cards(
    config: Config, chosen: list[dict[str, Any]], tally: Tally, threads: int
) -> list[dict[str, Any]]:
    """The records of the gallery, with their sheets; the failed ones come last."""
    pictured = [*chosen, *tally.seen_errors]
    sheets = {
        record["__key"]: vars(sheet)
        for record, sheet in zip(pictured, make_sheets(config, pictured, threads), strict=True)
    }
    cards = [*(card(record, config) for record in chosen), *tally.errors]
    return [{**shown, **sheets.get(shown["key"], {})} for shown in cards]


# --- histograms ----------------------------------------------------------------------------------


def _seconds_histogram(
    title: str, unit: str, name: str, jobs: list[dict[str, Any]]
) -> dict[str, Any]:
    """From the jobs' counts by :func:`time_bin`."""
    counts: Counter[int] = Counter()
    for job in jobs:
        for number, count in job["histograms"][name].items():
            counts[int(number)] += count
    bins = range(min(counts), max(counts) + 2) if counts else range(0)
    edges = [round(2 ** (number / BINS_PER_OCTAVE), 6) for number in bins]
    bars = [counts[number] for number in bins[:-1]]
    return _histogram(title, unit, "seconds", edges, bars, _within(edges, bars))


def _token_histogram(title: str, counts: Counter[int]) -> dict[str, Any]:
    """From the number of samples by their number of tokens."""
    low, high = (min(counts), max(counts)) if counts else (0, -1)
    width = _nice_width((high - low + 1) / TOKEN_BINS)
    first = low // width
    bars = [0] * (high // width - first + 1)
    for tokens, count in counts.items():
        bars[tokens // width - first] += count
    edges = [(first + number) * width for number in range(len(bars) + 1)]
    values = sorted(counts)
    below = list(accumulate(counts[value] for value in values))
    return _histogram(
        title,
        "samples",
        "tokens",
        edges,
        bars,
        lambda share: values[bisect_left(below, share * below[-1])],
    )


def _nice_width(width: float) -> int:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(width, 1)))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= width)


def _histogram(
    title: str,
    of: str,
    unit: str,
    edges: list[float],
    counts: list[int],
    quantile: Callable[[float], float],
) -> dict[str, Any]:
    shares = {"median": 0.5, "95 %": 0.95, "99 %": 0.99}
    return {
        "title": title,
        "of": of,
        "unit": unit,
        "edges": edges,
        "counts": counts,
        "total": sum(counts),
        "quantiles": {n: quantile(share) for n, share in shares.items()} if any(counts) else {},
    }


def _within(edges: list[float], counts: list[int]) -> Callable[[float], float]:
    """Quantiles of what is known by its bin: taken as evenly spread within it."""
    below = list(accumulate(counts, initial=0))

    def quantile(share: float) -> float:
        wanted = share * below[-1]
        number = bisect_left(below, wanted, lo=1) - 1
        part = (wanted - below[number]) / counts[number]
        return round(edges[number] + part * (edges[number + 1] - edges[number]), 4)

    return quantile


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
    """``data`` as base64 of compressed JSON: many errors take little room, and nothing in them can
    act as HTML."""
    compressed = gzip.compress(orjson.dumps(map_texts(data, printable)), mtime=0)
    return base64.b64encode(compressed).decode()


def _source(text: str) -> str:
    """How a content security policy names an element by its content."""
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
