"""How far a step is: in log lines, in a file, and in words."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from video_pipeline.common import progress as module
from video_pipeline.common.files import read_object
from video_pipeline.common.progress import Progress, describe_step, duration, share


def test_a_step_says_how_far_it_is(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setattr(module, "LOG_SECONDS", -1.0)
    caplog.set_level(logging.INFO)
    path = tmp_path / "split.progress.json"
    assert read_object(path) == {}
    with Progress(path, "split", "lines", total=5000) as progress:
        assert read_object(path)["done"] == 0
        progress.advance(1024)
        progress.advance(3976)
        assert read_object(path)["done"] == 5000
    assert read_object(path) == {}
    assert caplog.messages[0].startswith("split: 1,024 of 5,000 (20.5%) lines, ")
    assert caplog.messages[-1].startswith("split: 5,000 of 5,000 (100.0%) lines, ")


def test_a_step_that_fails_leaves_nothing(tmp_path: Path):
    path = tmp_path / "split.progress.json"
    with pytest.raises(ZeroDivisionError), Progress(path, "split", "lines") as progress:
        progress.advance(1 // 0)
    assert not list(tmp_path.iterdir())


def test_a_clock_that_jumps_changes_no_rate(tmp_path: Path, monkeypatch):
    class Clock:
        now, wrong = 0.0, 0.0

        def monotonic(self) -> float:
            return self.now

        def time(self) -> float:
            return self.now + self.wrong

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    path = tmp_path / "split.progress.json"
    with Progress(path, "split", "lines", total=40) as progress:
        clock.now, clock.wrong = 10.0, -3600.0
        progress.advance(10)
        words = describe_step(read_object(path))
    assert words == "10 of 40 (25.0%) lines, 1 a second, 30 s left"


def test_a_quick_step_is_silent(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    with Progress(tmp_path / "split.progress.json", "split", "lines") as progress:
        progress.advance(5000)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (3600, "60 min"),
        (12_000, "3 h 20 min"),
        (187_200, "2 d 4 h"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_nothing_is_complete_before_its_end():
    assert share(9_999_999, 10_000_000) == "99.9%"
    assert share(10_000_000, 10_000_000) == "100.0%"
    assert share(0, 0) == "100.0%"
