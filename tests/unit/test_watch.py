"""How far a run is, from its files alone."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from helpers import Run, Splitter, samples, wait_until
from rich.console import Console
from video_pipeline.commands import journal as journal
from video_pipeline.commands import retry
from video_pipeline.commands import watch as module
from video_pipeline.commands.watch import RankView, RunView, lines, look, screen, watch
from video_pipeline.common.locks import try_lock
from video_pipeline.common.progress import Progress
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.journal.format import attempt_prefix
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.layout import Layout
from video_pipeline.run.pace import Pace
from video_pipeline.run.sharding import Sharding
from video_pipeline.run.statistics import JobStatistics, Series, StatisticsFile


@pytest.fixture
def split_run(splitting: Splitter) -> Splitter:
    """A run with two ranks that was split: one sample of rank 1 fails."""
    entries = [*samples(5), {"id": "bad", "path": "bad.mp4", "do": "raise"}]
    splitting(entries)
    Sharding(2).write(splitting.layout.sharding)
    return splitting


def run_rank(splitting: Splitter, rank: int) -> None:
    infer(splitting.run.config, splitting.layout, rank, threads=2)


def states(view: RunView) -> list[tuple[str, int, int, int]]:
    return [(each.state, each.finished, each.samples, each.failed) for each in view.ranks]


def write_statistics(splitting: Splitter, rank: int, split_id: str = "", **values: Any) -> None:
    """What a job of a rank says of itself that began a moment ago."""
    statistics = JobStatistics(rank, 1, samples=3, **{"state": "running", **values})
    if "updated_at" not in values:
        statistics.updated_at = time.time()
    manifest = splitting.manifest
    name = f"{attempt_prefix(split_id or manifest.split_id, rank)}1.jsonl"
    StatisticsFile(Path(manifest.journal) / name).write(*statistics.snapshot())


def shown(*views: tuple[str, RunView], height: int = 50, width: int = 160) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(screen(views, height, width))
    return stream.getvalue()


def test_before_anything_has_run(here: Run) -> None:
    here.write_samples(samples(3))
    assert look(here.config).state == "not begun"
    tried = here.folder / "results" / ".chunks" / "out" / "plan.json"
    words = f"waits for snakemake: there is no {tried} yet (--directory names another folder)"
    assert lines("", look(here.config))[0].endswith(f" not begun: {words}")
    assert "not begun" in shown(("", look(here.config)))
    assert words in shown(("", look(here.config)), width=400)


@pytest.fixture
def at_work(split_run: Splitter) -> Iterator[None]:
    """A Snakemake is at work on the run."""
    with try_lock(split_run.layout.run_lock):
        yield


@pytest.mark.usefixtures("at_work")
def test_it_says_what_it_waits_for(split_run: Splitter, monkeypatch: pytest.MonkeyPatch) -> None:
    config, now = split_run.run.config, time.time()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: now, strftime=time.strftime))
    assert look(config).waits == "waits for its first inference job, which may be starting"
    began = now - 42
    write_statistics(split_run, 0, state="starting", started_at=began)
    view = look(config)
    assert view.waits == "waits for the model, which has been loading for 42 s"
    assert re.search(r"rank 0 .* loading the model for 42 s", shown(("", view)))
    assert f"  {view.waits}" in lines("", view)
    write_statistics(split_run, 1, state="starting", started_at=began - 100)
    assert "2 models, the first, which has been loading for 2 min" in look(config).waits
    manifest = split_run.layout.manifest
    manifest.unlink()
    words = f"waits for the rule split: there is no {manifest.absolute()} yet"
    assert words in look(config).waits
    log = split_run.layout.log("split")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("=== attempt 1\nerror: novid: no such folder\n")
    assert look(config).waits == "the rule split failed: novid: no such folder"


def test_a_narrow_terminal_shows_what_needs_a_look_first(split_run: Splitter) -> None:
    error = {"key": "k", "stage": "read", "type": "E", "message": "moov", "at": time.time()}
    ranks = [RankView(rank, "waiting", 10, 5) for rank in range(9)]
    ranks[7] = RankView(7, "failed", 10, 3, failed=2, note="the disk is full", last_error=error)
    text = shown(("", RunView(split_run.layout, "running", ranks)), height=20, width=40)
    assert max(map(len, text.splitlines())) <= 40
    places = [text.index(words) for words in ("moov", "\nall", "\nrank 7", "\nrank 0")]
    assert places == sorted(places)
    assert re.search(r"rank 7 30.0% +2 failed: the disk", text)


def test_a_run_from_its_begin_to_its_end(split_run: Splitter) -> None:
    config, layout = split_run.run.config, split_run.layout
    assert states(look(config)) == [("waiting", 0, 3, 0), ("waiting", 0, 3, 0)]
    run_rank(split_run, 1)
    view = look(config)
    assert states(view) == [("waiting", 0, 3, 0), ("done", 3, 3, 1)]
    assert view.state == "1 waiting, 1 done"
    assert "no such clip" in view.last_error
    assert (view.total.finished, view.total.samples, view.total.failed) == (3, 6, 1)
    text = shown(("", view))
    assert "3 of 6  50.0%" in text
    last_error = r"last error, .* ago: rank 1, sample bad: read: ValueError: no such clip"
    assert re.search(last_error, text)
    run_rank(split_run, 0)
    with try_lock(layout.run_lock):
        assert look(config).waits == "waits for the rule consolidate"
    consolidate(config, layout)
    view = look(config)
    assert view.is_over
    assert view.waits == ""
    assert "done" in shown(("", view))
    assert re.search(r"answered\s+│\s+5 │", shown(("", view)))
    split_run([*samples(8), {"id": "bad", "path": "bad.mp4", "do": "raise"}])  # It goes on.
    total = look(config).total
    assert (total.finished, total.samples, total.failed) == (6, 9, 1)


@pytest.mark.parametrize(("network", "bound"), [(3, "decode-bound"), (4, "network-bound")])
def test_a_running_job(split_run: Splitter, network: int, bound: str) -> None:
    series, now = Series(), time.time()
    series.add(15.0, finished=20, tokens=500, decode=7, network=network, engine=3)
    write_statistics(
        split_run, 0, finished=2, started_at=now - 20, ready_at=now - 10, lasted=20.0, series=series
    )
    view = look(split_run.run.config)
    assert states(view)[0] == ("running", 2, 3, 0)
    assert view.total.pace.samples_per_second == pytest.approx(2, rel=0.1)
    (line,) = lines("", view)
    assert "2 of 6 (33.3%) done, 0 failed; 2.0" in line
    assert f"2 s left, {bound}; 1 running, 1 waiting" in line
    assert bound in shown(("", view))


def test_a_job_on_a_card(split_run: Splitter) -> None:
    series, now = Series(), time.time()
    series.add(15.0, finished=20, prompt_tokens=500, flops=2e12)
    ran: dict[str, Any] = {"started_at": now - 20, "ready_at": now - 10, "lasted": 20.0}
    write_statistics(split_run, 0, gpus=2, flops=2e12, peak_flops=1e12, series=series, **ran)
    view, words = look(split_run.run.config), "25 prompt tokens/s per GPU (10.0% of its peak)"
    assert words in shown(("", view))
    assert words in lines("", view)[0]


def test_a_job_that_was_killed_is_silent(split_run: Splitter) -> None:
    # what the job of an earlier split said does not count
    write_statistics(split_run, 0, "earlier", finished=1)
    assert states(look(split_run.run.config))[0] == ("waiting", 0, 3, 0)
    write_statistics(split_run, 0, finished=1)
    assert look(split_run.run.config).ranks[0].state == "running"
    series, long_ago = Series(), time.time() - 300
    series.add(15.0, inferred=20, decode=10)
    ran: dict[str, Any] = {"started_at": long_ago - 20, "ready_at": long_ago - 10, "lasted": 20.0}
    write_statistics(split_run, 0, finished=1, updated_at=long_ago, series=series, **ran)
    view = look(split_run.run.config)
    rank = view.ranks[0]
    assert (rank.state, rank.note) == ("silent", "no sign of life for 5 min")
    assert view.total.pace == Pace()  # the dead are not at work
    assert "  rank 0 silent: 1 of 3 (33.3%): no sign of life for 5 min" in lines(
        "", look(split_run.run.config)
    )


def test_a_job_whose_process_is_gone_is_silent_at_once(split_run: Splitter) -> None:
    """After Ctrl-C, for example."""
    ended = subprocess.Popen(["true"])  # Its parent has not asked how it ended.
    wait_until(lambda: psutil.Process(ended.pid).status() == psutil.STATUS_ZOMBIE, "it has ended")
    for rank, pid in ((0, ended.pid), (1, os.getpid())):
        write_statistics(split_run, rank, finished=1)
        holder = {"host": socket.gethostname(), "pid": pid}
        split_run.layout.lock(rank).write_text(json.dumps(holder))
    view = look(split_run.run.config)
    assert [rank.state for rank in view.ranks] == ["silent", "running"]
    assert view.waits == ""
    assert view.ranks[0].note == "its process was stopped"
    run_rank(split_run, 1)
    assert look(split_run.run.config).waits == "waits for snakemake: run the same command again"
    ended.wait()
    assert look(split_run.run.config).ranks[0].note == "its process was stopped"
    # The process of another machine cannot be looked for.
    elsewhere = {"host": "elsewhere", "pid": ended.pid}
    split_run.layout.lock(0).write_text(json.dumps(elsewhere))
    assert look(split_run.run.config).ranks[0].state == "running"


def test_samples_that_were_opened_again_wait_for_snakemake(split_run: Splitter) -> None:
    for rank in (0, 1):
        run_rank(split_run, rank)
    split_run.layout.reopened.touch()
    assert look(split_run.run.config).waits == "waits for snakemake: run the same command again"
    with try_lock(split_run.layout.run_lock):  # It is at work.
        assert look(split_run.run.config).waits == "waits for the rule consolidate"


def test_without_a_snakemake_nothing_begins_by_itself(split_run: Splitter) -> None:
    """It was stopped, or a job has failed."""
    config, layout = split_run.run.config, split_run.layout
    again = "waits for snakemake: run the same command again"
    assert look(config).waits == again
    layout.failure(0).write_text("the disk is full")
    assert look(config).waits == again
    run_rank(split_run, 1)
    assert look(config).waits == again
    with try_lock(layout.run_lock):
        assert look(config).waits == ""
    run_rank(split_run, 0)
    assert look(config).waits == again
    log = layout.log("consolidate")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("=== attempt 1\nerror: it is damaged\n")
    assert look(config).waits == "the rule consolidate failed: it is damaged"
    layout.manifest.unlink()
    assert look(config).waits.startswith("waits for snakemake: there is no /")


def test_answers_that_were_cut_off_are_amber(split_run: Splitter) -> None:
    write_statistics(split_run, 0, truncated=Counter({"sampling.max_tokens": 2}))
    view, words = look(split_run.run.config), "2 answers were cut off: raise sampling.max_tokens"
    assert words in shown(("", view))
    assert f"  {words}" in lines("", view)
    stream = io.StringIO()
    terminal = Console(file=stream, width=160, force_terminal=True, color_system="standard")
    terminal.print(screen([("", view)], 50))
    assert f"\x1b[33m{words}" in stream.getvalue()


@pytest.mark.usefixtures("at_work")
def test_a_job_that_failed_says_why(split_run: Splitter) -> None:
    split_run.layout.failure(0).write_text("rank 0: the disk is full\nmore")
    rank = look(split_run.run.config).ranks[0]
    assert (rank.state, rank.note) == ("failed", "rank 0: the disk is full\nmore")
    assert "rank 0: the disk is full" in shown(("", look(split_run.run.config)))
    assert lines("", look(split_run.run.config))[1:] == [
        "  rank 0 failed: 0 of 3 (0.0%): rank 0: the disk is full"
    ]


def test_other_steps_are_shown(split_run: Splitter) -> None:
    layout, config = split_run.layout, split_run.run.config
    with Progress(layout.progress("split"), "split", "lines") as progress:
        progress.advance(7)
        assert look(config).state == "splitting"
        assert "split: 7 lines" in shown(("", look(config)))
        assert "split: 7 lines" in lines("", look(config))[0]
    assert look(config).state == "2 waiting"
    with Progress(layout.progress("consolidate"), "consolidate", "samples", 6):
        assert look(config).state == "consolidating"
        assert "consolidate: 0 of 6 (0.0%) samples" in shown(("", look(config)))


def test_of_many_ranks_those_that_need_a_look_are_shown(split_run: Splitter) -> None:
    ranks = [RankView(rank, "waiting", 10, 0) for rank in range(1000)]
    ranks[700] = RankView(700, "failed", 10, 3, note="the disk is full")
    text = shown(("", RunView(split_run.layout, "running", ranks)), height=20)
    assert len(text.splitlines()) <= 20
    assert "rank 700" in text
    assert "988 more" in text


def test_texts_from_samples_cannot_move_the_cursor(split_run: Splitter) -> None:
    error = {"key": "a\x1b[2J", "stage": "read", "type": "E", "message": "m\nx", "at": time.time()}
    view = RunView(split_run.layout, "running", [RankView(0, "running", 1, 0, last_error=error)])
    for text in (shown(("", view)), "\n".join(lines("", view))):
        assert "\x1b[2J" not in text
        assert "m\\nx" in text


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_run_is_watched_until_its_end(
    split_run: Splitter, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    config = split_run.run.config
    stream = io.StringIO()
    looks = iter([lambda: None, lambda: run_rank(split_run, 0), lambda: run_rank(split_run, 1)])

    def sleep(seconds: float) -> None:
        assert seconds == (module.TERMINAL_SECONDS if is_terminal else module.PLAIN_SECONDS)
        next(looks, lambda: consolidate(config, split_run.layout))()

    monkeypatch.setattr(module.time, "sleep", sleep)
    console = Console(file=stream, soft_wrap=True, width=120, force_terminal=is_terminal)
    watch(config, once=False, console=console)
    text = re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue())
    for progress in (r"0 of 6\W+0\.0%", r"3 of 6\W+50\.0%", r"answered\s+│\s+5 │"):
        assert re.search(progress, text), text
    if not is_terminal:
        assert text.count("results/out.jsonl") == 1


def test_watching_ends_with_a_run_that_fails(
    split_run: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before it begins, and not while a job is at work whose Snakemake was killed."""
    locks: list[Any] = []
    looks = iter(
        [
            lambda: locks.append(try_lock(split_run.layout.run_lock)),
            lambda: write_statistics(split_run, 0),
            lambda: locks.pop().close(),
            lambda: write_statistics(split_run, 0, state="failed"),
        ]
    )
    monkeypatch.setattr(module.time, "sleep", lambda seconds: next(looks)())
    stream = io.StringIO()
    with pytest.raises(UserError, match="the run has ended without its output"):
        watch(split_run.run.config, once=False, console=Console(file=stream, soft_wrap=True))
    assert next(looks, None) is None
    assert "rank 0 failed" in stream.getvalue().splitlines()[-2]


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("vanishing", ["the manifest", "a failure"])
def test_what_vanishes_between_the_look_and_the_read_ends_nothing(
    split_run: Splitter, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, vanishing: str
) -> None:
    """Split replaces the chunks, or a job begins again, while it looks."""
    config, layout = split_run.run.config, split_run.layout
    path = layout.manifest if vanishing == "the manifest" else layout.failure(1)
    layout.failure(1).parent.mkdir(parents=True, exist_ok=True)
    layout.failure(1).write_text("error: the disk is full")
    exists = Path.exists

    def exists_no_longer(self: Path) -> bool:
        found = exists(self)
        if self == path:
            self.unlink(missing_ok=True)
        return found

    def sleep(seconds: float) -> None:
        monkeypatch.setattr(Path, "exists", exists)
        split_run()
        for rank in (0, 1):
            run_rank(split_run, rank)
        consolidate(config, layout)

    monkeypatch.setattr(Path, "exists", exists_no_longer)
    monkeypatch.setattr(module.time, "sleep", sleep)
    stream = io.StringIO()
    console = Console(file=stream, soft_wrap=True, width=120, force_terminal=is_terminal)
    watch(config, once=False, console=console)
    assert not layout.failure(1).exists()
    first = "not split yet" if vanishing == "the manifest" else "2 waiting"
    for words in (first, "done"):
        assert words in stream.getvalue()


def test_an_output_whose_chunks_are_removed_meanwhile_is_not_over(
    split_run: Splitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake removes the chunks before split makes new ones; the old output is still there."""
    for rank in (0, 1):
        run_rank(split_run, rank)
    consolidate(split_run.run.config, split_run.layout)
    assert look(split_run.run.config).is_over
    is_finished = Layout.is_finished.fget

    def finished_without(layout: Layout) -> bool:
        layout.manifest.unlink()
        return is_finished(layout)

    monkeypatch.setattr(Layout, "is_finished", property(finished_without))
    assert look(split_run.run.config).state == "not split yet"


@pytest.mark.usefixtures("at_work")
def test_what_it_waits_for_needs_no_other_file(split_run: Splitter) -> None:
    for rank in (0, 1):
        run_rank(split_run, rank)
    view = look(split_run.run.config)
    split_run.layout.manifest.unlink()
    assert view.waits == "waits for the rule consolidate"


def test_a_file_that_stays_damaged_is_no_moment_between_two_reads(split_run: Splitter) -> None:
    split_run.layout.manifest.write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json"):
        watch(split_run.run.config, once=False, console=Console(file=io.StringIO()))


def test_stages_are_shown_one_after_the_other(here: Run) -> None:
    here.write_samples(samples(3))
    here.settings["stages"] = [{"name": "one"}, {"name": "two"}]
    here.configure()
    stream = io.StringIO()
    watch(here.config, once=True, console=Console(file=stream, soft_wrap=True))
    assert "one: not begun" in stream.getvalue()
    assert "two: not begun" in stream.getvalue()


def test_a_stage_that_is_over_leaves_the_screen_to_the_one_that_runs(split_run: Splitter) -> None:
    for rank in (0, 1):
        run_rank(split_run, rank)
    consolidate(split_run.run.config, split_run.layout)
    one, layout = look(split_run.run.config), Layout(Path("results/two.jsonl"), 99)
    error = {"key": "k", "stage": "read", "type": "E", "message": "moov", "at": time.time()}
    ranks = [RankView(rank, "running", 10, 5, last_error=error) for rank in range(99)]
    for width in (60, 160):
        views = ("one: ", one), ("two: ", RunView(layout, "99 running", ranks))
        text = shown(*views, height=24, width=width)
        assert len(text.splitlines()) <= 24
        for words in ("one: done", "two: 99 running", "rank 0", "moov"):
            assert words in text
        assert "answered" not in text
    assert re.search(r"answered\s+│\s+5 │", shown(("one: ", one)))


@pytest.mark.parametrize(
    ("main", "command"),
    [(module.main, ["watch"]), (retry.main, ["retry"]), (journal.main, ["journal", "stats"])],
)
def test_a_folder_that_is_not_there(
    here: Run, monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], command: list[str]
) -> None:
    arguments = ["--configfile", "my.yaml", "--directory", "nowhere"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    with pytest.raises(UserError, match=r"--directory: /.*/nowhere does not exist"):
        main()
