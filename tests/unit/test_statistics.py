"""What a job spends: over time, in histograms, and what a run cost."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
from helpers import samples
from video_pipeline import statistics as module
from video_pipeline import streaming
from video_pipeline.inference import infer
from video_pipeline.progress import Pace, describe_pace
from video_pipeline.statistics import (
    MOST_STEPS,
    JobStatistics,
    Series,
    cost,
    read_statistics,
    time_bin,
)


def test_a_series_keeps_what_was_counted_however_long_it_gets():
    series = Series()
    for second in range(10_000):
        series.add(second + 0.5, inferred=1, tokens=10)
    shown = series.as_dict()
    assert len(shown["inferred"]) <= MOST_STEPS
    assert shown["step"] == 128
    assert sum(shown["inferred"]) == 10_000
    assert sum(shown["tokens"]) == 100_000
    # as many in each step, but for the last, which is not over yet
    assert set(shown["inferred"][:-1]) == {128}


def test_a_series_has_empty_steps_where_nothing_was_counted():
    series = Series()
    series.add(0.2, failed=1)
    series.add(3.9, inferred=2)
    shown = series.as_dict()
    assert shown["failed"] == [1, 0, 0, 0]
    assert shown["inferred"] == [0, 0, 0, 2]
    assert shown["engine"] == [0, 0, 0, 0]


def test_bins_of_a_histogram():
    assert time_bin(1.0) == 0
    assert time_bin(4.0) == 8
    assert time_bin(1.18) == 0
    assert time_bin(1.2) == 1
    assert time_bin(0.0) == time_bin(0.001) == -40


class Clock:
    """Stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9

    def process_time(self) -> float:
        return self.now / 4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_ticks_bring_the_statistics_up_to_now(clock):
    statistics = JobStatistics(3, num_workers=2, started_at=clock.time())
    assert statistics.as_dict()["state"] == "starting"
    clock.now += 5.0  # the model starts
    statistics.tick({"decode": 0.0, "engine": 0.0})
    assert statistics.seconds == 0
    with statistics.engine_busy():
        clock.now += 2.0
        statistics.tick({"decode": 0.5, "engine": 1.5})
        now = statistics.as_dict()
        assert now["state"] == "running"
        assert now["ready_at"] - now["started_at"] == 5.0
        assert now["updated_at"] - now["started_at"] == 7.0
        assert (now["seconds"], now["engine_busy_seconds"]) == (2.0, 2.0)
        clock.now += 1.0
    statistics.count(SimpleNamespace(prompt_tokens=90, completion_tokens=10))
    statistics.count_sample(SimpleNamespace(video_seconds=4.0))
    error = {"stage": "read", "type": "ValueError", "message": "no such clip"}
    statistics.count_error("7", error)
    clock.now += 1.0
    statistics.tick({"decode": 1.5, "engine": 2.5})
    statistics.end("done")
    end = json.loads(statistics.to_json([{"rank": 3}]))[1]
    assert (end["seconds"], end["engine_busy_seconds"], end["feeding_cpu_seconds"]) == (4, 3, 1)
    assert end["errors"] == {"read": 1}
    assert end["last_error"] == {"key": "7", **error, "at": clock.time() - 1.0}
    assert end["series"] == {
        "step": 1.0,
        "inferred": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "failed": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "tokens": [0, 0, 0, 0, 0, 0, 0, 0, 0, 100],
        "busy": [0, 0, 0, 0, 0, 0, 0, 2, 0, 1],
        "decode": [0, 0, 0, 0, 0, 0, 0, 0.5, 0, 1],
        "engine": [0, 0, 0, 0, 0, 0, 0, 1.5, 0, 1],
    }
    assert end["histograms"]["engine_seconds"] == {str(time_bin(3.0)): 1}


def attempt(started: float, ready: float, updated: float, step: float, **series) -> dict:
    length = max(map(len, series.values()))
    columns = {name: series.get(name, [0] * length) for name in Series.NAMES}
    return {
        "started_at": started,
        "ready_at": ready,
        "updated_at": updated,
        "series": {"step": step, **columns},
    }


def test_the_pace_is_that_of_the_last_minute():
    slow_then_fast = attempt(
        0, 100, 400, 100, inferred=[0, 10, 10, 300], failed=[0, 0, 0, 20], tokens=[0, 0, 0, 5000]
    )
    pace = Pace.of([slow_then_fast])
    assert pace.samples_per_second == pytest.approx(3.2)
    assert pace.tokens_per_second == pytest.approx(50)
    both = Pace.of([slow_then_fast, slow_then_fast])
    assert both.samples_per_second == pytest.approx(6.4)


def test_the_start_of_the_model_does_not_slow_the_pace():
    assert Pace.of([attempt(0, 30, 40, 10, inferred=[0, 0, 0, 20])]).samples_per_second == 2
    assert Pace.of([attempt(0, 30, 50, 64, inferred=[20])]).samples_per_second == 1
    assert Pace.of([attempt(0, None, 50, 64, inferred=[0])]) == Pace()


def test_the_pace_in_words():
    pace = Pace(2.0, 1900.0, decode=0.3, engine=0.6)
    assert describe_pace(pace, 3840) == "2.00 samples/s, 1,900 tokens/s, 32 min left, engine-bound"
    assert describe_pace(Pace(), 10) == "0.00 samples/s, 0 tokens/s"


def job(begin: float, end: float, gpus: int = 1, inferred: int = 10) -> dict:
    times = {"started_at": begin, "updated_at": end, "seconds": (end - begin) / 2}
    return {**times, "gpus": gpus, "inferred": inferred, "video_seconds": 3600.0}


def test_what_a_run_took():
    # two at once, a pause, and one more
    jobs = [job(0, 3600), job(1800, 5400, gpus=2), job(9000, 9900)]
    assert cost(jobs) == {
        "wall_seconds": 5400 + 900,
        "gpu_hours": 1 + 2 + 0.25,
        "video_hours": 3.0,
        "videos_per_second_per_gpu": round(30 / (1800 + 3600 + 450), 3),
    }
    assert cost([])["wall_seconds"] == 0


def test_jobs_of_an_older_version_have_no_times():
    old = {"seconds": 5.0, "inferred": 10, "video_seconds": 0.0}
    assert cost([old])["wall_seconds"] == 0
    assert cost([old])["videos_per_second_per_gpu"] == 2


def test_a_job_leaves_its_statistics_and_says_how_far_it_is(splitting, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(streaming, "PROGRESS_SECONDS", 0.1)
    run = splitting.run
    splitting([*samples(5), {"id": "bad", "path": "bad.mp4", "do": "raise"}], num_shards=1)
    infer(run.config, splitting.layout, 0, threads=2)
    (done,) = read_statistics(splitting.layout.statistics(0))
    assert done["state"] == "done"
    assert (done["samples"], done["pending"]) == (6, 6)
    assert (done["finished"], done["finished_failed"]) == (6, 1)
    assert done["errors"] == {"read": 1}
    assert done["last_error"]["key"] == "bad"
    assert sum(done["series"]["inferred"]) == done["inferred"] == 5
    assert sum(done["series"]["failed"]) == 1
    assert sum(done["histograms"]["engine_seconds"].values()) == 5
    assert done["started_at"] <= done["ready_at"] <= done["updated_at"]
    said = [line for line in caplog.messages if line.startswith("rank 0: ") and "samples/s" in line]
    assert said[0].startswith("rank 0: 0 of 6 (0.0%) done, 0 failed; 0.00 samples/s, 0 tokens/s; ")
    assert said[-1].startswith("rank 0: 6 of 6 (100.0%) done, 1 failed; ")
