"""Balance: what samples weigh, and that ranks end together."""

from __future__ import annotations

import math
import os
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
from helpers import samples
from video_pipeline.config import Data
from video_pipeline.split import balance
from video_pipeline.split.balance import BalanceReport, assign_ranks
from video_pipeline.split.weights import BYTES_PER_SECOND, Weigher, known_weight
from video_pipeline.testing.clips import write_clip
from video_pipeline.video import headers
from video_pipeline.video.header import Header


def heavy_tailed(count: int) -> np.ndarray:
    """Log-normal durations, sigma 1."""
    return np.random.default_rng(0).lognormal(2.5, 1.0, count).astype(np.float32)


def loads(weights, ranks, num_ranks) -> np.ndarray:
    return np.bincount(ranks, weights, num_ranks)


@pytest.mark.parametrize("num_ranks", [8, 64])
@pytest.mark.parametrize(("single", "bundles"), [(100_000, 1_000_000), (1000, 2000)])
def test_ranks_end_together(monkeypatch, num_ranks, single, bundles):
    """Also where the lighter samples are dealt out in bundles, as of millions."""
    monkeypatch.setattr(balance, "_SINGLE", single)
    monkeypatch.setattr(balance, "_BUNDLES", bundles)
    weights, report = heavy_tailed(10_000), BalanceReport("duration")
    ours = loads(weights, assign_ranks(weights, num_ranks, report), num_ranks)
    by_count = loads(weights, np.arange(10_000) % num_ranks, num_ranks)
    assert ours.max() / ours.mean() <= 1.03
    assert report.longest == pytest.approx(ours.max() / ours.mean())
    assert report.longest_by_count == pytest.approx(by_count.max() / by_count.mean())
    assert report.longest_by_count > 1.03


@pytest.mark.parametrize("single", [100_000, 300])
def test_the_size_of_a_batch_changes_nothing(monkeypatch, single):
    monkeypatch.setattr(balance, "_SINGLE", single)
    monkeypatch.setattr(balance, "_BUNDLES", 100)
    once, in_batches = BalanceReport("duration"), BalanceReport("duration")
    ranks = assign_ranks(heavy_tailed(1000), 7, once)
    monkeypatch.setattr(balance, "BATCH", 64)
    assert assign_ranks(heavy_tailed(1000), 7, in_batches).tolist() == ranks.tolist()
    assert in_batches.longest == pytest.approx(once.longest)


def test_the_heaviest_goes_where_least_is():
    """By hand: 9 | 7 + 2 | 6 + 3, 1 to the first of the least."""
    weights = np.array([2, 9, 3, 7, 1, 6], np.float32)
    assert assign_ranks(weights, 3, BalanceReport("size")).tolist() == [1, 0, 2, 1, 0, 2]


def test_unknown_weights_are_the_median():
    weights = np.array([math.nan, 1, 5, 100, math.nan], np.float32)
    report = BalanceReport("size")
    ranks = assign_ranks(weights, 2, report)
    assert weights.tolist() == [5, 1, 5, 100, 5]
    assert report.unknown == 2
    assert ranks.tolist() == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("weights", [[], [math.nan] * 5, [2.0] * 5])
def test_nothing_to_go_by(weights):
    ranks = assign_ranks(np.array(weights, np.float32), 2, BalanceReport("size"))
    assert ranks.tolist() == [0, 1, 0, 1, 0][: len(weights)]


class Fragile:
    """Processes that die of a file called ``bad``."""

    started = 0

    def __init__(self, *_: object, **__: object) -> None:
        Fragile.started += 1

    def map(self, function, slices):
        if any("bad" in part for part in slices):
            raise BrokenProcessPool
        return [[Header(float(file), None, "h264") for file in part] for part in slices]

    def shutdown(self) -> None:
        pass


def test_a_file_that_kills_its_reader_costs_only_itself(monkeypatch):
    monkeypatch.setattr(headers, "ProcessPoolExecutor", Fragile)
    files = [*map(str, range(1, 101)), "bad", *map(str, range(102, 201))]
    with Weigher(Data(balance="duration"), 2) as weigher:
        found = weigher.weigh(files, np.full(200, math.nan), np.ones(200, bool), [""] * 200)
    assert np.flatnonzero(np.isnan(found)).tolist() == [100]
    assert np.nansum(found) == sum(range(201)) - 101
    assert 1 < Fragile.started < 20


def test_what_was_looked_up_is_counted(tmp_path):
    """Over all that is weighed; what a sample says, or the web holds, is not looked up."""
    (tmp_path / "a").write_bytes(bytes(7))
    (tmp_path / "empty").touch()
    uris = [str(tmp_path / name) for name in ("a", "empty", "gone", "a")] + ["http://h/a"]
    known = np.array([math.nan, math.nan, math.nan, 3, math.nan])
    wanted = np.array([True, True, True, True, True])
    none = [""] * 5  # files that a dataset will look for
    with Weigher(Data(balance="size"), 1) as weigher:
        assert (weigher.looked_up, weigher.seconds) == (0, 0.0)
        found = weigher.weigh(uris, known, wanted, none)
        assert found.tolist() == pytest.approx([7, 1, math.nan, 3, math.nan], nan_ok=True)
        assert weigher.looked_up == 4
        some = np.array([True, False, False, False, True])
        found = weigher.weigh(uris, known, some, none)
        assert found.tolist() == pytest.approx([7, *[math.nan] * 2, 3, math.nan], nan_ok=True)
        assert weigher.looked_up == 5
        unasked = weigher.weigh(uris, known, np.zeros(5, bool), none)
        assert np.array_equal(unasked, known, equal_nan=True)
        assert weigher.seconds > 0
    with Weigher(Data(balance="duration"), 1) as weigher:
        weights = weigher.weigh([str(tmp_path / "gone")], np.array([2.5]), np.array([True]), [""])
        assert (weights.tolist(), weigher.looked_up) == ([2.5], 0)  # the sample says it


def test_the_manifest_has_numbers_that_can_be_read():
    nothing = {"longest_by_count": 1.0, "looked_up": 0, "unknown": 0, "seconds": 0.0}
    assert BalanceReport("size").as_dict() == {"by": "size", "longest": 1.0, **nothing}
    assert BalanceReport("size", 1.234567).as_dict() == {"by": "size", "longest": 1.2346, **nothing}


# --- through split -----------------------------------------------------------------------------


def test_only_pending_samples_are_weighed(splitting):
    splitting.run.configure(data={"balance": "duration"})
    entries = [{**e, "duration": 1000 if e["id"] < 4 else e["id"]} for e in samples(40)]
    splitting(entries, 2).finish("0", "1", "2")
    splitting(num_shards=2)
    pending = [sum(e.raw["duration"] for e in chunk if not e.done) for chunk in splitting.chunks]
    assert sorted(pending) == [sum(range(4, 40)), 1000]
    assert splitting.order == [str(number) for number in range(40)]
    assert splitting.manifest.rank_pending == [1, 36]
    assert sum(splitting.manifest.rank_samples) == 40


def test_sizes_of_files(splitting):
    """One large file against many small ones; what has no size counts as the median."""
    for number in range(9):
        size = 900 if number == 3 else 100
        (splitting.run.folder / f"{number}.mp4").write_bytes(bytes(size))
    web = [{"id": 9, "path": "http://host.invalid/a.mp4"}, {"id": 10, "path": "gone.mp4"}]
    splitting([*samples(9), *web], 2)
    (alone,) = (chunk for chunk in splitting.keys if "3" in chunk)
    assert alone in (["3"], ["3", "10"])
    assert {
        "by": "size",
        "looked_up": 10,
        "unknown": 2,
    }.items() <= splitting.manifest.balance.items()
    splitting.finish("0", "1", "3")
    assert splitting(num_shards=2).manifest.balance["looked_up"] == 7


def test_empty_files_are_spread_too(splitting):
    for number in range(6):
        (splitting.run.folder / f"{number}.mp4").touch()
    assert splitting(samples(6), 3).manifest.rank_pending == [2, 2, 2]


def test_short_segments_of_a_long_file(splitting):
    (splitting.run.folder / "long.mp4").touch()
    (splitting.run.folder / "short.mp4").touch()
    os.truncate(splitting.run.folder / "long.mp4", 1000 * BYTES_PER_SECOND)  # takes no room
    os.truncate(splitting.run.folder / "short.mp4", 10 * BYTES_PER_SECOND)
    entries = [
        *({"id": n, "path": "long.mp4", "video_start": n, "video_end": n + 1} for n in range(10)),
        {"id": 10, "path": "short.mp4"},
        {"id": 11, "path": "short.mp4", "video_start": 100, "video_end": 900},
    ]
    splitting(entries, 3)
    assert sorted(map(sorted, splitting.keys), key=len) == [["10"], ["11"], sorted("0123456789")]


def test_lengths_from_headers(splitting):
    splitting.run.configure(data={"balance": "duration"})
    for number, seconds in enumerate([4, 1, 1, 1, 1]):
        write_clip(splitting.run.folder / f"{number}.mp4", seconds=seconds, fps=10)
    (splitting.run.folder / "5.mp4").write_bytes(b"no video")
    splitting(samples(6), 2, num_processes=1)
    assert sorted(map(len, splitting.chunks)) == [2, 4]
    counts = {"by": "duration", "looked_up": 6, "unknown": 1}
    assert counts.items() <= splitting.manifest.balance.items()
    assert splitting.manifest.balance["longest"] == pytest.approx(10 / 9, abs=0.01)
    splitting.run.configure(data={"balance": "count"})
    assert splitting(num_shards=2).keys == [["0", "2", "4"], ["1", "3", "5"]]
    assert splitting.manifest.balance["looked_up"] == 0


@pytest.mark.parametrize(
    ("raw", "by", "weight"),
    [
        ({"duration": 7}, "count", 1.0),
        ({"duration": 7}, "duration", 7.0),
        ({"duration": "7"}, "duration", math.nan),
        ({"duration": True}, "duration", math.nan),
        ({"duration": 7, "video_start": 2}, "duration", 5.0),
        ({"duration": 7, "video_start": 2, "video_end": 60}, "duration", 5.0),
        ({"video_start": 2, "video_end": 3.5}, "duration", 1.5),
        ({"video_start": 3, "video_end": 2}, "duration", math.nan),
        ({"video_end": 1e300}, "duration", math.nan),
        ({}, "duration", math.nan),
        ({"duration": 7}, "size", math.nan),
        ({"video_start": 2, "video_end": 3.5}, "size", 1.5 * BYTES_PER_SECOND),
    ],
)
def test_what_a_sample_says(raw, by, weight):
    assert known_weight(raw, by) == pytest.approx(weight, nan_ok=True)
