"""What Snakemake prints last after a failure."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from video_pipeline.config import load_config
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import Sharding
from video_pipeline.run.stages import Stage
from video_pipeline.workflow.failure_report import failure_report, last_errors


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Stage:
    """A stage of six ranks that was split, and of which the first is finished."""
    monkeypatch.chdir(tmp_path)
    config = load_config({"data": {"output_jsonl": "my results/out.jsonl"}})
    layout = Layout.of(config, 6)
    layout.chunks.mkdir(parents=True)
    layout.manifest.write_text("{}")
    os.utime(layout.manifest, (time.time() - 60,) * 2)
    layout.rank_file(0).write_text("")
    return Stage("ask", config, Sharding(6), layout)


def write_log(stage: Stage, name: str, text: str) -> None:
    log = stage.layout.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)


def test_the_report_names_unfinished_shards_and_the_first_errors(stage, tmp_path):
    write_log(stage, "infer.rank0", "error: of an earlier attempt\n")
    for rank in (1, 2, 3, 5):
        write_log(stage, f"infer.rank{rank}", f"=== begun\nerror: number {rank}\n")
    lines = failure_report([stage], Path("/the workflow")).splitlines()
    assert "The logs under logs/out/ say what failed" in lines[1]
    assert lines[3].startswith("Not finished: rank 1, rank 2, rank 3, rank 4, rank 5 (of 6).")
    assert lines[3].endswith(f"from {tmp_path}:")
    assert shlex.split(lines[4]) == [
        *(sys.executable, "/the workflow/infer.py", "--config", "my results/out.config.yaml"),
        *("--num-shards", "6", "--rank", "1", "--threads", str(os.cpu_count())),
    ]
    assert lines[5:] == [
        *("The first 3 of 4 errors:", "error: number 1", "error: number 2", "error: number 3"),
    ]


def test_a_job_that_has_not_made_its_output_says_why(stage):
    stage.layout.manifest.unlink()
    write_log(stage, "split", "error: 2 bad lines\n  line 3\n")
    report = failure_report([stage], Path())
    assert "Not finished" not in report
    assert report.endswith("\nerror: 2 bad lines\n  line 3")


def test_a_run_that_was_stopped_shows_what_had_failed_before(stage):
    write_log(stage, "infer.rank3", "=== begun\nerror: number 3\n")
    lines = failure_report([stage], Path(), is_stopped=True).splitlines()
    assert lines[1].startswith("Stopped by a signal")
    assert lines[1].endswith("infers only what is missing.")
    assert lines[2:] == ["error: number 3"]


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_run_without_resume_begins_anew(stage, is_stopped):
    config = load_config({"data": {"resume": False}})
    anew = Stage("ask", config, stage.sharding, stage.layout)
    report = failure_report([anew], Path(), is_stopped=is_stopped)
    assert "data.resume is false, so the same command begins anew.\n" in f"{report}\n"
    assert "only what is missing" not in report


def test_the_error_of_an_earlier_run_is_not_shown_again(stage):
    stage.layout.manifest.unlink()
    write_log(stage, "consolidate", "error: an earlier one (log: consolidate.attempt1.log)\n")
    earlier = last_errors([stage])
    write_log(stage, "split", "error: a new one (log: split.attempt2.log)\n")
    report = failure_report([stage], Path(), earlier=earlier)
    assert report.endswith("error: a new one (log: split.attempt2.log)")
    assert "an earlier one" not in report
