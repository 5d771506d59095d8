"""The page of the benchmarks: what is measured again replaces only itself."""

from __future__ import annotations

import sys

import pytest
from helpers import PROJECT

sys.path.append(str(PROJECT))

from benchmarks import __main__ as benchmarks
from benchmarks import report
from benchmarks.report import Figure, Section

PAGE = PROJECT / "docs" / "benchmarks.md"


def section(title: str, measured: str) -> Section:
    figure = Figure.for_comparison(f"figure of {title}", measured)
    return Section(title, [figure], f"How {title} was measured.", "", date="then", machine="this")


def test_a_section_replaces_itself_where_it_stands():
    first, second, third = (section(title, "1") for title in ("one", "two", "three"))
    page = report.page([first, second])
    again = section("one", "2")
    assert report.put(page, again) == report.page([again, second])
    assert report.put(page, third) == report.page([first, second, third])


def test_one_family_in_a_fresh_clone_keeps_the_others(tmp_path, monkeypatch):
    """Nothing was measured in this checkout, and the page has what others have measured."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "benchmarks.md").write_text(PAGE.read_text())
    titles = [line for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    monkeypatch.setattr("benchmarks.memory.run", lambda work: section("Memory", "42"))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "memory", "--work", str(tmp_path / "work")])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    benchmarks.main()
    text = (docs / "benchmarks.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == titles
    assert "| figure of Memory |  | 42 |  |" in text
    assert "How Memory was measured." in text


def test_a_family_that_does_not_exist(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "memroy"])
    with pytest.raises(SystemExit):
        benchmarks.main()
