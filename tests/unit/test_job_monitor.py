"""What a job counts goes to its file, to the log, and decides whether it goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal

import pytest
from helpers import ERROR, samples, wait_until
from video_pipeline.errors import UserError
from video_pipeline.infer.admission import Window
from video_pipeline.infer.job_monitor import JobMonitor
from video_pipeline.infer.shard import Shard
from video_pipeline.run.statistics import StatisticsFile
from video_pipeline.tasks.registry import load_task


@pytest.fixture
def monitor(splitting) -> JobMonitor:
    """The monitor of a job with 40 samples."""
    return monitor_of(splitting(samples(40), 1))


def monitor_of(splitting) -> JobMonitor:
    config = splitting.run.config
    shard = Shard(config, splitting.layout, 0, splitting.manifest, load_task(config))
    shard.find_pending()
    window = Window(max_bytes=1e9, max_samples=10, max_preparing=2)
    return JobMonitor(shard, window, num_processes=2, card=None)


def test_its_file_says_how_far_the_job_is(monitor, tmp_path):
    file = StatisticsFile(tmp_path / "attempt.jsonl")

    async def keep() -> None:
        keeping = asyncio.create_task(monitor.keep_file(file))
        while not file.path.exists():
            await asyncio.sleep(0)
        keeping.cancel()

    monitor.count_finished("0", None)
    monitor.count_finished("1", ERROR)
    asyncio.run(keep())
    running = json.loads(file.path.read_text(encoding="utf-8"))
    assert (running["state"], running["pending"]) == ("starting", 40)
    assert (running["finished"], running["finished_failed"]) == (2, 1)
    assert running["last_error"]["key"] == "1"
    monitor.end(file, "done")
    assert json.loads(file.path.read_text(encoding="utf-8"))["state"] == "done"


def test_what_earlier_attempts_have_finished_is_no_part_of_its_pace(splitting):
    splitting(samples(40), 1).finish("0", "1", failed=("2",))
    monitor = monitor_of(splitting)
    monitor.tick()
    monitor.count_finished("3", ERROR)
    monitor.tick()
    assert monitor.statistics.finished == 4
    assert sum(monitor.statistics.series.columns["finished"]) == 1


def test_its_file_is_complete_when_a_signal_ends_the_job(monitor, tmp_path):
    """The signal then does what it did before."""
    file = StatisticsFile(tmp_path / "attempt.jsonl")
    ended: list[int] = []
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        with monitor.written_when_stopped(file):
            monitor.count_finished("0", None)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: ended, "the signal has arrived")
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert ended == [signal.SIGTERM]
    stopped = json.loads(file.path.read_text(encoding="utf-8"))
    assert (stopped["state"], stopped["finished"]) == ("starting", 1)


def test_too_many_failures_stop_the_job(monitor):
    for key in range(19):
        monitor.count_finished(str(key), ERROR)
    with pytest.raises(UserError, match=r"rank 0: 20 of the 20 .* finished \(of 40\)"):
        monitor.count_finished("19", ERROR)
    assert monitor.statistics.failed == 20


def test_samples_under_way_count_as_not_failed(monitor):
    monitor._window.held = 1 + 300  # The sample that fails is one of those that are held.
    for key in range(30):
        monitor.count_finished(str(key), ERROR)


def test_answers_that_were_cut_off_are_logged_when_there_are_more(monitor, caplog):
    caplog.set_level(logging.INFO)
    monitor.statistics.truncated["sampling.max_tokens"] = 3
    monitor.log_progress()
    monitor.log_progress()
    assert [m for m in caplog.messages if "cut off" in m] == [
        "rank 0: 3 answers were cut off: raise sampling.max_tokens"
    ]
    assert caplog.messages[0].startswith("rank 0: 0 of 40 (0.0%) done, 0 failed; ")
