"""What the terminal says about all jobs together."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import Splitter, samples, wait_until
from video_pipeline.commands import watch
from video_pipeline.common.locks import try_lock
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.sharding import Sharding
from video_pipeline.run.stages import Stage
from video_pipeline.workflow import progress_lines
from video_pipeline.workflow.progress_lines import ProgressLines


@pytest.fixture
def lines(splitting: Splitter) -> ProgressLines:
    """Of a run with two ranks, of which the first is finished; one sample of the other fails."""
    splitting([*samples(5), {"id": "bad", "path": "bad.mp4", "do": "raise"}])
    splitting.run.configure(data={"num_shards": 2}, run={"max_error_rate": 1.0})
    config, layout = splitting.run.config, splitting.layout
    Sharding(2).write(layout.sharding)
    layout.config.write_text(config.to_yaml())
    infer(config, layout, 0, threads=2)
    made = ProgressLines([Stage("", config, Sharding(2), layout)], Path("/the workflow"))
    made.splitting = splitting
    return made


def test_a_line_now_and_then_is_about_all_ranks_together(lines, capsys, monkeypatch):
    with try_lock(lines.splitting.layout.run_lock):
        (line,) = lines.lines()
    assert re.search(r"results/out\.jsonl: 3 of 6 \(50\.0%\) done, .*1 waiting, 1 done$", line)
    monkeypatch.setattr(progress_lines, "FIRST_LINES", (0.01,))
    lines.begin()
    wait_until(lambda: "3 of 6 (50.0%) done" in capsys.readouterr().err, "a line")
    lines.end()
    lines._thread.join()


def test_a_line_says_how_long_a_model_has_been_loading(lines, monkeypatch):
    layout = lines.splitting.layout
    layout.rank_file(0).unlink()
    infer(lines.splitting.run.config, layout, 1, threads=2)
    layout.rank_file(1).unlink()
    now = time.time()
    for statistics in Path(Manifest.read(layout).journal).glob("*.statistics.json"):
        attempt = json.loads(statistics.read_text())
        begun = {"state": "starting", "started_at": now - 20, "updated_at": now}
        statistics.write_text(json.dumps(attempt | begun))
    monkeypatch.setattr(watch, "time", SimpleNamespace(time=lambda: now, strftime=time.strftime))
    (line,) = lines.lines()
    assert re.search(
        r"; 2 starting; waits for 2 models, the first, which .* loading for 20 s$", line
    )


def test_the_command_that_is_named_watches_the_run(lines, capsys):
    lines.begin()
    lines.end()
    (line,) = capsys.readouterr().err.splitlines()
    command = shlex.split(line.partition("terminal: ")[2])
    done = subprocess.run([*command, "--once"], cwd="/", capture_output=True, text=True, check=True)
    assert "3 of 6" in done.stdout


def test_at_the_end_stand_the_paths_and_the_command_for_what_failed(lines, capsys):
    config, layout = lines.splitting.run.config, lines.splitting.layout
    infer(config, layout, 1, threads=2)
    consolidate(config, layout)
    assert json.loads(layout.summary.read_text())["samples"]["error"] == 1
    assert list(lines.lines()) == []  # it is over
    capsys.readouterr()
    lines.show_summary()
    *_, output, report, errors, failed, retry = capsys.readouterr().err.splitlines()
    assert [output, report, errors] == [
        "output  results/out.jsonl",
        "report  results/out.report.html",
        "errors  results/out.errors.jsonl",
    ]
    assert failed.startswith("failed  bad.mp4: read: ")
    assert retry.startswith("To try 1 failed sample(s) again, ")
    command = shlex.split(retry.partition("first run ")[2])
    subprocess.run(command, cwd="/", check=True)
    assert layout.reopened.exists()


def test_a_failure_of_a_file_that_was_replaced_says_so(lines, capsys):
    config, layout = lines.splitting.run.config, lines.splitting.layout
    infer(config, layout, 1, threads=2)
    consolidate(config, layout)
    later = time.time() + 10
    Path("bad.mp4").touch()
    os.utime("bad.mp4", (later, later))
    capsys.readouterr()
    lines.show_summary()
    (failed,) = [line for line in capsys.readouterr().err.splitlines() if "failed  bad" in line]
    assert failed.endswith("no such clip (the file is another one now)")


def test_more_failures_than_are_named_are_counted(lines, capsys, monkeypatch):
    monkeypatch.setattr(progress_lines, "MOST_FAILURES", 0)
    config, layout = lines.splitting.run.config, lines.splitting.layout
    infer(config, layout, 1, threads=2)
    consolidate(config, layout)
    capsys.readouterr()
    lines.show_summary()
    assert "failed  and 1 more" in capsys.readouterr().err.splitlines()
