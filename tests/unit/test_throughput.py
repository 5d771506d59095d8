"""How fast a run was and how much it took."""

from __future__ import annotations

import json

from video_pipeline.run.pace import Pace, describe_gpu
from video_pipeline.run.statistics import JobStatistics, read_statistics
from video_pipeline.run.throughput import cost, covered, throughput


def job(begin: float, end: float, ready: float | None = None, **more) -> dict:
    """An attempt that began, and ended, at these moments; its first request came halfway."""
    ready = (begin + end) / 2 if ready is None else ready
    statistics = JobStatistics(0, 2, started_at=begin, gpus=1, inferred=10, video_seconds=3600.0)
    statistics.ready_at, statistics.lasted = ready, end - begin
    statistics.seconds = end - ready
    statistics.engine_busy_seconds = statistics.decode_busy_seconds = end - ready
    return {**statistics.as_dict(), **more}


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


def test_time_is_counted_once_however_many_were_at_work():
    assert covered([]) == 0
    assert covered([(0, 10), (2, 3), (9, 12), (20, 21)]) == 13
    assert covered([(5, 5), (-3, -1)]) == 2


def test_ranks_that_had_to_wait_for_a_gpu_are_not_taken_as_side_by_side():
    """Two ranks of 10 samples in 50 s each: at once, or on one GPU after each other."""
    at_once = [job(0, 100), job(0, 100, rank=1)]
    in_turn = [job(0, 100), job(100, 200, rank=1)]
    assert throughput(at_once)["videos_per_second"] == 0.4
    assert throughput(at_once)["seconds"] == 50
    assert throughput(in_turn)["videos_per_second"] == 0.2
    assert throughput(in_turn)["seconds"] == 100
    # of one GPU it is the same
    assert {cost(jobs)["videos_per_second_per_gpu"] for jobs in (at_once, in_turn)} == {0.2}


def test_how_fast_one_gpu_was():
    """Its model ran for 50 of the 100 seconds of each of these attempts."""
    spent = {"prompt_tokens": 50_000, "card": "A", "peak_flops": 1e12, "flops": 20e12}
    single = throughput([job(0, 100, **spent)])
    assert single["cards"] == ["A"]
    assert single["prompt_tokens_per_second_per_gpu"] == 1000
    assert single["share_of_peak"] == 0.4
    # a job with two devices, of another kind
    both = throughput(
        [job(0, 100, **spent), job(0, 100, **{**spent, "gpus": 2, "card": "B", "peak_flops": 2e12})]
    )
    assert both["cards"] == ["A", "B"]
    assert both["prompt_tokens_per_second_per_gpu"] == round(100_000 / 150, 1)
    assert both["share_of_peak"] == round(40 / (50 + 200), 4)


def test_what_is_not_known_has_no_share():
    known = {"prompt_tokens": 50_000, "card": "A", "peak_flops": 1e12, "flops": 20e12}
    for missing in ({"peak_flops": None}, {"flops": None}, {"card": None, "peak_flops": None}):
        figures = throughput([job(0, 100, **known), job(0, 100, **{**known, **missing})])
        assert figures["prompt_tokens_per_second_per_gpu"] == 1000
        assert figures["share_of_peak"] is None
    on_a_cpu = throughput([job(0, 100, **{**known, "gpus": 0, "card": None, "peak_flops": None})])
    assert on_a_cpu["prompt_tokens_per_second_per_gpu"] is None
    assert on_a_cpu["share_of_peak"] is None
    assert on_a_cpu["cards"] == []


def test_an_attempt_of_an_earlier_version_still_counts(tmp_path):
    of_old = job(0, 100, prompt_tokens=50_000, completion_tokens=0)
    for name in ("model", "quantization", "card", "peak_flops", "patches", "flops"):
        del of_old[name]
    for name in ("prompt_tokens", "flops"):
        del of_old["series"][name]
    (tmp_path / "attempt.a.rank0.1-x.statistics.json").write_text(json.dumps(of_old))
    jobs = read_statistics(tmp_path)
    assert throughput(jobs)["prompt_tokens_per_second_per_gpu"] == 1000
    assert throughput(jobs)["share_of_peak"] is None
    assert describe_gpu(sum(map(Pace.of, jobs), Pace())) == ""


def test_an_attempt_that_was_killed_counts_up_to_its_last_sign_of_life():
    killed = job(0, 100, state="running")
    again = job(10_000, 10_100, rank=0)
    assert cost([killed, again])["wall_seconds"] == 200
    assert cost([killed, again])["gpu_hours"] == round(200 / 3600, 4)
    assert throughput([killed, again])["seconds"] == 100


def test_shares_lie_between_none_and_all():
    """Whatever a file says that was written down between two moments."""
    more = {"engine_busy_seconds": 50.1, "decode_busy_seconds": 101.0}
    figures = throughput([job(0, 100, **more)])
    assert figures["engine_busy_share"] == figures["decode_workers_load"] == 1.0
    assert figures["engine_waiting_share"] == 0.0


def test_an_attempt_without_a_request_has_no_pace_but_a_cost():
    starting = job(0, 100, ready=100, state="starting", ready_at=None, inferred=0)
    assert throughput([starting]) == {"bound": "nothing was inferred"}
    assert cost([starting])["gpu_hours"] == round(100 / 3600, 4)
    assert throughput([starting, job(100, 200)])["seconds"] == 50


def waiting(rank: int, decode: float, engine: float, network: float = 0.0, **more) -> dict:
    """An attempt that waited so many seconds for samples, in a part of these for the network, and
    for the engine."""
    statistics = JobStatistics(rank, num_workers=2, inferred=10, seconds=decode + engine, **more)
    statistics.limits = {"decode": decode, "network": network, "engine": engine}
    statistics.ready_at = statistics.started_at
    return statistics.as_dict()


def test_the_summary_says_what_bounds_the_run():
    assert throughput([waiting(0, 70.0, 30.0)])["bound"] == "decode-bound: give it more cores"
    assert throughput([waiting(0, 30.0, 70.0, network=30.0)])["bound"] == "engine-bound"
    by_network = throughput([waiting(0, 70.0, 30.0, network=40.0)])["bound"]
    assert by_network == "network-bound: run nearer to the videos"
    assert throughput([waiting(0, 70.0, 30.0, network=30.0)])["bound"].startswith("decode-bound")
    assert throughput([waiting(0, 70.0, 30.0), waiting(1, 10.0, 90.0)])["bound"] == "engine-bound"
    assert throughput([waiting(0, 20.0, 9.0)])["bound"] == "too short to tell"
    assert throughput([]) == {"bound": "nothing was inferred"}


def test_rates_are_of_all_attempts_together():
    spent = {"video_seconds": 40.0, "prompt_tokens": 90, "completion_tokens": 10}
    first = waiting(0, 6.0, 4.0, engine_busy_seconds=9.0, decode_busy_seconds=10.0, **spent)
    again = waiting(0, 5.0, 5.0, engine_busy_seconds=9.0, decode_busy_seconds=10.0, **spent)
    other = waiting(1, 5.0, 0.0, engine_busy_seconds=4.5, decode_busy_seconds=5.0, **spent)
    for attempt, ready in ((first, 0.0), (again, 100.0), (other, 2.0)):
        attempt["ready_at"] = ready
    assert throughput([first, again, other]) == {
        "seconds": 20.0,  # rank 1 ran beside the first of the two attempts of rank 0
        "videos_per_second": 1.5,
        "video_hours_per_hour": 6.0,
        "tokens_per_second": 15.0,
        "cards": [],
        "prompt_tokens_per_second_per_gpu": None,
        "share_of_peak": None,
        "engine_busy_share": 0.9,
        "engine_waiting_share": 0.1,
        "decode_workers_load": 0.5,
        "bound": "too short to tell",
    }
