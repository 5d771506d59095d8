"""Watching a run that Snakemake is at work on."""

from __future__ import annotations

import re

import pytest
from helpers import Run, samples, wait_until

pytestmark = pytest.mark.two_ranks


def test_watching_a_live_run(run: Run) -> None:
    run.write_samples(samples(60))
    slow = {"seconds_per_output_token": 0.5, "output_tokens": 1, "concurrency": 1}
    run.configure(run={"simulated": slow})
    assert "not begun" in run.module("watch", "--once")
    main = run.start_snakemake()
    try:
        live = wait_until(
            lambda: re.search(
                r"(\d+) of 60 \(.*%\) done, 0 failed; (?!0\.00)[\d.]+ videos/s, .*; 2 running",
                run.module("watch", "--once"),
            ),
            "both jobs run",
        )
        assert int(live[1]) < 60
    finally:
        assert main.wait(120) == 0
    assert re.search(r"answered\s+│\s+60 │", run.module("watch"))  # it ends with the run
