"""Watching a run that Snakemake is at work on."""

from __future__ import annotations

import re

import pytest
from helpers import Run, samples, wait_until
from video_pipeline.commands.watch import RunView, lines, look

pytestmark = pytest.mark.two_ranks


def test_watching_a_live_run(here: Run) -> None:
    # The last ones of both ranks wait until both have been seen at work.
    here.write_samples({**one, "do": "wait" if one["id"] >= 40 else None} for one in samples(60))
    slow = {"seconds_per_output_token": 0.5, "output_tokens": 1, "concurrency": 1}
    here.configure(run={"simulated": slow})
    assert "not begun" in here.module("watch", "--once")
    main = here.start_snakemake()

    def both_run() -> RunView | None:
        view = look(here.config)
        return view if view.state == "2 running" and view.total.pace.samples_per_second else None

    try:
        view: RunView = wait_until(both_run, "both jobs run")
        assert view.total.finished < 60
        progress = r"\d+ of 60 \(.*%\) done, 0 failed; [\d.]+ videos/s, .*; 2 running"
        assert re.search(progress, "\n".join(lines("", view)))
    finally:
        (here.folder / "go").touch()
        assert main.wait(120) == 0
    assert re.search(r"answered\s+│\s+60 │", here.module("watch"))  # It ends with the run.
