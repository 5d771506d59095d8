"""What a job spends: over time, in histograms, and what a run cost."""

from __future__ import annotations

import io
import json
import logging
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import samples
from rich.console import Console
from video_pipeline.common.figures import time_bin
from video_pipeline.engine.base import Answer
from video_pipeline.engine.simulated import SimulatedEngine
from video_pipeline.gpu import devices as gpus
from video_pipeline.gpu import leases
from video_pipeline.infer import job_monitor, streaming
from video_pipeline.infer.infer import infer
from video_pipeline.infer.job_monitor import JobMonitor
from video_pipeline.model.flops import ModelFlops
from video_pipeline.output.consolidation import consolidate
from video_pipeline.report.page import collect, render
from video_pipeline.report.summary import summary_table
from video_pipeline.run import statistics as module
from video_pipeline.run.pace import Pace, describe_gpu, describe_progress
from video_pipeline.run.statistics import (
    MOST_STEPS,
    JobStatistics,
    Series,
    StatisticsFile,
    read_statistics,
)
from video_pipeline.run.throughput import cost, throughput


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


class Clock:
    """Stands for the module ``time``. ``wrong``: how far the machine's clock is off."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wrong = 0.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + self.wrong + 1e9

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
    statistics.tick({"decode": 0.0, "network": 0.0, "engine": 0.0})
    assert statistics.seconds == 0
    with statistics.engine_busy():
        clock.now += 2.0
        statistics.tick({"decode": 0.5, "network": 0.25, "engine": 1.5})
        now = statistics.as_dict()
        assert now["state"] == "running"
        assert now["ready_at"] - now["started_at"] == 5.0
        assert now["updated_at"] - now["started_at"] == 7.0
        assert (now["seconds"], now["engine_busy_seconds"]) == (2.0, 2.0)
        clock.now += 1.0
    statistics.count(answer(90, 10))
    statistics.count_sample(SimpleNamespace(video_seconds=4.0), None, 0)
    error = {"stage": "read", "type": "ValueError", "message": "no such clip"}
    statistics.count_error("7", error)
    statistics.finished = 2
    clock.now += 1.0
    statistics.tick({"decode": 1.5, "network": 0.25, "engine": 2.5})
    statistics.end("done")
    lasted, text = statistics.snapshot()
    end = json.loads(text)
    assert lasted == end["lasted"] == 9.0
    assert (end["seconds"], end["engine_busy_seconds"], end["feeding_cpu_seconds"]) == (4, 3, 1)
    assert end["errors"] == {"read": 1}
    assert end["last_error"] == {"key": "7", **error, "at": clock.time() - 1.0}
    assert end["series"] == {
        "step": 1.0,
        "finished": [0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        "inferred": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "failed": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        "tokens": [0, 0, 0, 0, 0, 0, 0, 0, 0, 100],
        "prompt_tokens": [0, 0, 0, 0, 0, 0, 0, 0, 0, 90],
        "flops": [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        "busy": [0, 0, 0, 0, 0, 0, 0, 2, 0, 1],
        "decode": [0, 0, 0, 0, 0, 0, 0, 0.5, 0, 1],
        "network": [0, 0, 0, 0, 0, 0, 0, 0.25, 0, 0],
        "engine": [0, 0, 0, 0, 0, 0, 0, 1.5, 0, 1],
    }
    assert end["histograms"]["engine_seconds"] == {str(time_bin(3.0)): 1}


def answer(prompt_tokens: int, completion_tokens: int, **more) -> Answer:
    return Answer("Yes.", prompt_tokens, completion_tokens, "stop", **more)


MODEL = ModelFlops(token=100, head=10, patch=1)


def test_operations_are_counted_where_the_model_is_known(clock):
    statistics = JobStatistics(0, num_workers=1, gpus=1)
    statistics.tick({})
    assert (statistics.flops, statistics.peak_flops) == (None, None)
    statistics.count_flops(MODEL, 1e15)
    with statistics.engine_busy():
        clock.now += 1.0
        statistics.count(answer(7, 3))
        statistics.count_sample(SimpleNamespace(video_seconds=4.0), None, 5)
        statistics.tick({})
        clock.now += 1.0
        statistics.count(answer(41, 0, cached_tokens=40))
        statistics.tick({})
    assert (statistics.flops, statistics.peak_flops) == (100 * 11 + 10 * 3 + 5, 1e15)
    series = statistics.series.as_dict()
    assert (series["flops"], series["prompt_tokens"]) == ([0, 1035, 100], [0, 7, 41])


def attempt(
    started: float, ready: float, updated: float, step: float, gpus: int = 0, **series
) -> dict:
    """``gpus`` of 1,000 operations a second."""
    length = max(map(len, series.values()))
    columns = {name: series.get(name, [0] * length) for name in Series.NAMES}
    return {
        "gpus": gpus,
        "peak_flops": 1000.0,
        "flops": float(sum(columns["flops"])),
        "started_at": started,
        "ready_at": ready,
        "lasted": updated - started,
        "series": {"step": step, **columns},
    }


def test_the_pace_is_that_of_the_last_minute():
    slow_then_fast = attempt(0, 100, 400, 100, finished=[0, 10, 10, 320], tokens=[0, 0, 0, 5000])
    pace = Pace.of(slow_then_fast)
    assert pace.samples_per_second == pytest.approx(3.2)
    assert pace.tokens_per_second == pytest.approx(50)
    both = Pace.of(slow_then_fast) + Pace.of(slow_then_fast)
    assert both.samples_per_second == pytest.approx(6.4)


def test_an_answer_that_does_not_count_is_finished_once(clock):
    """It is answered, and it failed. Five samples were finished by an earlier attempt."""
    statistics = JobStatistics(0, num_workers=1, finished=5)
    statistics.tick({})
    with statistics.engine_busy():
        for key in range(10):
            statistics.count_sample(SimpleNamespace(video_seconds=1.0), "sampling.max_tokens", 0)
            statistics.count_error(str(key), {"stage": "length", "type": "X", "message": "x"})
        statistics.finished = 15
        clock.now += 1.0
        statistics.tick({})
    job = statistics.as_dict()
    assert (job["inferred"], job["failed"]) == (10, 10)
    assert Pace.of(job).samples_per_second == 10


def test_an_earlier_version_did_not_count_what_is_finished():
    job = attempt(0, 30, 40, 10, inferred=[0, 0, 0, 20], failed=[0, 0, 0, 10])
    del job["series"]["finished"]
    assert Pace.of(job).samples_per_second == 3


def test_the_start_of_the_model_does_not_slow_the_pace():
    assert Pace.of(attempt(0, 30, 40, 10, finished=[0, 0, 0, 20])).samples_per_second == 2
    assert Pace.of(attempt(0, 30, 50, 64, finished=[20])).samples_per_second == 1
    assert Pace.of(attempt(0, None, 50, 64, finished=[0])) == Pace()


def test_the_pace_in_words():
    pace = Pace(2.0, 1900.0, decode=0.3, engine=0.6)
    assert describe_progress(160, 4000, 3, pace) == (
        "160 of 4,000 (4.0%) done, 3 failed; "
        "2.00 videos/s, 1,900 tokens/s, 32 min left, engine-bound"
    )
    assert describe_progress(0, 10, 0, Pace()) == "0 of 10 (0.0%) done, 0 failed"
    first = describe_progress(0, 10, 0, Pace(engine=1.0))
    assert first == "0 of 10 (0.0%) done, 0 failed; no new answer, engine-bound"


def test_the_pace_of_one_gpu():
    """Of a rank with one GPU and one with two."""
    spent = {"prompt_tokens": [0, 6000], "flops": [0, 30_000]}
    single = attempt(0, 60, 120, 60, gpus=1, **spent)
    double = attempt(0, 60, 120, 60, gpus=2, **spent)
    pace = Pace.of(single) + Pace.of(double)
    assert describe_gpu(pace) == "67 prompt tokens/s per GPU (33.3% of its peak)"
    assert describe_progress(1, 1, 0, pace).endswith(
        ", 67 prompt tokens/s per GPU (33.3% of its peak)"
    )
    assert sum([Pace.of(single), Pace.of(double)], Pace()) == pace
    # a share of the known ones would be taken for that of all
    for unknown in ({"peak_flops": None}, {"flops": None}):
        assert (
            describe_gpu(sum(map(Pace.of, [single, {**double, **unknown}]), Pace()))
            == "67 prompt tokens/s per GPU"
        )
    assert describe_gpu(Pace.of(attempt(0, 60, 120, 60, **spent))) == ""


def test_a_clock_that_jumps_changes_no_length(clock):
    """Of a machine that is set right by an hour, forth or back, while the job runs."""
    for wrong in (3600.0, -3600.0):
        clock.wrong = 0.0
        statistics = JobStatistics(0, num_workers=1, started_at=clock.time())
        clock.now += 5.0
        clock.wrong = wrong
        with statistics.engine_busy():
            clock.now += 2.0
        statistics.inferred = statistics.finished = 4
        statistics.tick({"decode": 0.0, "network": 0.0, "engine": 2.0})
        clock.now += 1.0
        statistics.end("done")
        job = statistics.as_dict()
        assert (job["ready_at"] - job["started_at"], job["lasted"]) == (5.0, 8.0)
        assert job["updated_at"] == clock.time()
        assert cost([job])["wall_seconds"] == 8.0
        assert throughput([job])["videos_per_second"] == 2.0
        assert Pace.of(job).samples_per_second == pytest.approx(4 / 3)


def test_decode_processes_are_never_busier_than_they_can_be(clock):
    """They begin while the model loads: what they do then is no part of the time in which it
    runs."""
    statistics = JobStatistics(0, num_workers=2)
    for _ in range(2):
        clock.now += 30.0
        statistics.count_prepared(SimpleNamespace(seconds=30.0))
        statistics.count_prepared(SimpleNamespace(seconds=30.0))
    with statistics.engine_busy():
        clock.now += 2.0
        statistics.count_prepared(SimpleNamespace(seconds=10.0))  # 2 of them since then
        clock.now += 2.0
        statistics.count_prepared(SimpleNamespace(seconds=3.0))
        statistics.tick({"decode": 0.0, "network": 0.0, "engine": 4.0})
    assert statistics.decode_seconds == 133.0
    assert statistics.decode_busy_seconds == 5.0
    assert throughput([statistics.as_dict()])["decode_workers_load"] == round(5 / 8, 4)


# --- the files -----------------------------------------------------------------------------------


def test_an_older_snapshot_never_replaces_a_newer_one(tmp_path, clock):
    """The thread that writes now and then may come late."""
    statistics = JobStatistics(0, 1)
    file = StatisticsFile(tmp_path / "attempt.s.rank0.1-a.jsonl")
    clock.now += 5.0
    statistics.tick({})
    running = statistics.snapshot()
    statistics.end("done")  # within the same moment of the clock
    file.write(*statistics.snapshot())
    clock.now += 1.0
    statistics.end("done")
    file.write(*statistics.snapshot())
    file.write(*running)
    (newest,) = read_statistics(tmp_path)
    assert (newest["state"], newest["lasted"]) == ("done", 6.0)


def test_the_statistics_of_other_splits_are_left_out(tmp_path, caplog):
    for rank, name in enumerate(("a.rank1.2-x", "b.rank0.1-y", "a.rank0.3-z")):
        begun = JobStatistics(rank, 1, started_at=10.0 - rank)
        StatisticsFile(tmp_path / f"attempt.{name}.jsonl").write(*begun.snapshot())
    (tmp_path / "attempt.a.rank0.4-w.statistics.json").write_text('{"rank": 7')
    assert [attempt["rank"] for attempt in read_statistics(tmp_path)] == [2, 1, 0]
    assert [attempt["rank"] for attempt in read_statistics(tmp_path, {"a"})] == [2, 0]
    assert "attempt.a.rank0.4-w.statistics.json is damaged" in caplog.text
    assert read_statistics(tmp_path / "nowhere") == []


def test_a_job_on_a_card_tells_its_share(splitting, monkeypatch, caplog):
    """From the lease to the summary, the table, the page and the log."""
    caplog.set_level(logging.INFO)
    card = "NVIDIA H100 80GB HBM3"
    held = [gpus.Device("0", "GPU-1", card), gpus.Device("1", "GPU-2", card)]
    monkeypatch.setattr(leases, "lease_for", lambda config: nullcontext(held))
    monkeypatch.setattr(job_monitor, "gpus_needed", lambda config: 2)
    monkeypatch.setattr(SimulatedEngine, "flops", ModelFlops(10**12, 10**11, 10**10))
    monkeypatch.setattr(SimulatedEngine, "precision", "fp8")
    monkeypatch.setattr(SimulatedEngine, "patches", lambda self, requests: 4 * len(list(requests)))
    run = splitting.run
    finish(splitting, 4)
    summary, (done,) = run.summary(), run.summary()["jobs"]
    assert (done["model"], done["card"], done["gpus"]) == ("simulated", card, 2)
    assert done["patches"] == 16
    prompt, completion = done["prompt_tokens"], done["completion_tokens"]
    flops = 1e12 * (prompt + completion) + 1e11 * completion + 16e10
    assert done["flops"] == pytest.approx(flops)
    pace, held_for = summary["throughput"], 2 * done["seconds"]
    assert pace["cards"] == [card]
    assert pace["prompt_tokens_per_second_per_gpu"] == pytest.approx(prompt / held_for, abs=0.1)
    assert pace["share_of_peak"] == pytest.approx(flops / (1979e12 * held_for), abs=1e-4)
    shown = io.StringIO()
    Console(file=shown, width=100).print(summary_table(splitting.layout.summary))
    for row in (
        f"of │ {card}",
        f"prompt tokens/s per GPU │ {pace['prompt_tokens_per_second_per_gpu']:,.0f}",
        f"of the GPU's peak │ {pace['share_of_peak']:.1%}",
    ):
        assert row in re.sub(" +", " ", shown.getvalue())
    html = " ".join(render(collect(run.config, splitting.layout, 1)).split())
    assert f"of the peak of <bdi>{card}</bdi>" in html
    assert "<span>prompt tokens a second of one GPU</span>" in html
    assert re.search(r"prompt tokens/s per GPU \([\d.]+% of its peak\)", caplog.text)


def test_without_a_gpu_nothing_is_said_of_one(splitting, caplog):
    caplog.set_level(logging.INFO)
    finish(splitting, 2)
    shown = io.StringIO()
    Console(file=shown, width=100).print(summary_table(splitting.layout.summary))
    html = render(collect(splitting.run.config, splitting.layout, 1))
    for text in (shown.getvalue(), html, caplog.text):
        assert "answered" in text or "done" in text
        assert "of the peak" not in text
        assert "'s peak" not in text
        assert "prompt tokens/s" not in text
        assert "prompt tokens a second" not in text


def attempts(run) -> list[tuple[int, int]]:
    """Rank and answered samples of the attempts that the summary counts."""
    return sorted((attempt["rank"], attempt["inferred"]) for attempt in run.summary()["jobs"])


def finish(splitting, count: int, num_shards: int = 1, run_id: str = "") -> list[tuple[int, int]]:
    """A whole run over so many samples; the attempts that its summary counts."""
    splitting(samples(count), num_shards, run_id)
    for rank in range(num_shards):
        infer(splitting.run.config, splitting.layout, rank, threads=2)
    consolidate(splitting.run.config, splitting.layout)
    return attempts(splitting.run)


def test_a_run_counts_the_attempts_that_its_answers_came_from(splitting):
    run = splitting.run
    assert finish(splitting, 4) == [(0, 4)]
    assert finish(splitting, 6) == [(0, 2), (0, 4)]  # two lines more
    cost_so_far = run.summary()["cost"]
    assert finish(splitting, 6, num_shards=2) == [(0, 2), (0, 4)]  # nothing was inferred
    assert run.summary()["cost"] == cost_so_far
    # other settings, and back again
    run.configure(sampling={"max_tokens": 9})
    assert finish(splitting, 6) == [(0, 6)]
    run.configure(sampling={"max_tokens": 512})
    assert finish(splitting, 6) == [(0, 2), (0, 4)]
    # from nothing
    assert finish(splitting, 6, run_id="one") == [(0, 6)]
    assert finish(splitting, 5, run_id="two") == [(0, 5)]
    # the same settings, but another question about each sample: none of the answers is left
    splitting([{**sample, "hint": "Why?"} for sample in samples(3)], 1)
    infer(run.config, splitting.layout, 0, threads=2)
    consolidate(run.config, splitting.layout)
    assert attempts(run) == [(0, 3)]
    page = collect(run.config, splitting.layout, 1)
    assert [row["inferred"] for row in page["time"]["ranks"]] == [3]


def test_an_attempt_that_failed_before_its_first_answer_counts(splitting, monkeypatch):
    splitting(samples(3), 1)
    with monkeypatch.context() as patch:
        patch.setattr(SimulatedEngine, "start", lambda self, folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            infer(splitting.run.config, splitting.layout, 0, threads=2)
    infer(splitting.run.config, splitting.layout, 0, threads=2)
    consolidate(splitting.run.config, splitting.layout)
    jobs = splitting.run.summary()["jobs"]
    assert [attempt["state"] for attempt in jobs] == ["failed", "done"]
    assert attempts(splitting.run) == [(0, 0), (0, 3)]


def test_the_load_of_the_decode_processes_is_a_share(splitting):
    finish(splitting, 4)
    assert 0 <= splitting.run.summary()["throughput"]["decode_workers_load"] <= 1


def test_a_job_leaves_its_statistics_and_says_how_far_it_is(splitting, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(streaming, "PROGRESS_SECONDS", 0.1)
    run, log = splitting.run, JobMonitor.log_progress

    def log_and_go(monitor: JobMonitor) -> None:
        log(monitor)
        (run.folder / "go").touch()

    monkeypatch.setattr(JobMonitor, "log_progress", log_and_go)
    first, *others = samples(5)  # The first one waits for the first line.
    bad = {"id": "bad", "path": "bad.mp4", "do": "raise"}
    splitting([{**first, "do": "wait"}, *others, bad], num_shards=1)
    infer(run.config, splitting.layout, 0, threads=2)
    (done,) = read_statistics(Path(splitting.manifest.journal))
    assert done["state"] == "done"
    assert (done["samples"], done["pending"]) == (6, 6)
    assert (done["finished"], done["finished_failed"]) == (6, 1)
    assert done["errors"] == {"read": 1}
    assert done["last_error"]["key"] == "bad"
    assert sum(done["series"]["inferred"]) == done["inferred"] == 5
    assert sum(done["series"]["failed"]) == 1
    assert sum(done["series"]["finished"]) == 6
    assert sum(done["histograms"]["engine_seconds"].values()) == 5
    assert done["started_at"] <= done["ready_at"] <= done["updated_at"]
    logged = [line for line in caplog.messages if line.startswith("rank 0: ") and "done, " in line]
    assert logged[0].startswith("rank 0: 0 of 6 (0.0%) done, 0 failed; 1 being read, ")
    assert logged[-1].startswith("rank 0: 6 of 6 (100.0%) done, 1 failed; ")
