"""Watch a run: a bar for each rank and one for all, and what bounds it. Only files are read, so it
works beside a local run, on another machine of a cluster, and after the end.

python -m video_pipeline.watch --configfile my.yaml
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from video_pipeline import cli
from video_pipeline.answers import describe_cut_off, describe_unparsed
from video_pipeline.cli import plain
from video_pipeline.config import Config, load_config
from video_pipeline.files import is_newer
from video_pipeline.layout import Layout
from video_pipeline.pace import Pace, describe_gpu, describe_pace, describe_samples
from video_pipeline.plan import read_plan
from video_pipeline.progress import count, describe_step, duration, read_step, share
from video_pipeline.rank_files import RankContents
from video_pipeline.report.summary import summary_table
from video_pipeline.sharding import Manifest
from video_pipeline.statistics import read_statistics

SILENT_SECONDS = 60.0
"""A job writes down how far it is every 5 s. One that has not for so long is probably gone."""

TERMINAL_SECONDS, PLAIN_SECONDS = 2.0, 30.0
"""How often a terminal is drawn anew; how often lines are printed where there is none."""

State = Literal["waiting", "starting", "running", "silent", "failed", "done"]

_FIRST_SHOWN: tuple[State, ...] = ("failed", "silent", "running", "starting", "waiting", "done")
_STYLES = {"failed": "red", "silent": "yellow", "running": "cyan", "done": "green"}
_STEPS = ("split", "consolidate")


@dataclass
class RankView:
    """How far one rank is.

    Attributes:
        rank: The rank.
        state: ``silent`` is one that runs, but has not said so for :data:`SILENT_SECONDS`.
        samples: Samples of its chunk.
        finished: Of these, how many are done.
        failed: Of these, how many failed.
        pace: Of its running job.
        note: Why it failed, or how long it has been silent.
        last_error: The last sample that failed, see :class:`JobStatistics`.
        truncated: How many of its samples have an answer that was cut off, by the setting that did
            it: as the rank file says; until it is there, those since the input was split.
        unparsed: How many of its samples failed in stage ``parse``, as the rank file says; until it
            is there, how many of the first answers of each attempt ``parse`` failed on.
    """

    rank: int
    state: State
    samples: int
    finished: int
    failed: int = 0
    pace: Pace = field(default_factory=Pace)
    note: str = ""
    last_error: dict[str, Any] | None = None
    truncated: Counter[str] = field(default_factory=Counter)
    unparsed: int = 0


@dataclass
class RunView:
    """How far one output is.

    Attributes:
        layout: Where its files lie.
        state: In a word or two.
        ranks: Its ranks; none before the input was split.
        step: A step that is on and is no inference, see :class:`Progress`.
    """

    layout: Layout
    state: str
    ranks: list[RankView] = field(default_factory=list)
    step: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the output is there."""
        return self.state == "done"

    @property
    def total(self) -> RankView:
        """All ranks together."""
        return RankView(
            -1,
            "running",
            sum(each.samples for each in self.ranks),
            sum(each.finished for each in self.ranks),
            sum(each.failed for each in self.ranks),
            sum((each.pace for each in self.ranks), Pace()),
            truncated=sum((each.truncated for each in self.ranks), Counter()),
            unparsed=sum(each.unparsed for each in self.ranks),
        )

    @property
    def last_error(self) -> tuple[int, dict[str, Any]] | None:
        """The rank, and the last sample that failed."""
        found = [(each.rank, each.last_error) for each in self.ranks if each.last_error]
        return max(found, key=lambda entry: entry[1]["at"], default=None)


def look(config: Config) -> RunView:
    """How far the run of ``config`` is (without its stages)."""
    plan = read_plan(Layout.of(config, 0).plan)
    if plan is None:
        return RunView(Layout.of(config, 0), "not begun")
    layout = Layout.of(config, plan.num_shards)
    step = next(filter(None, (_running(layout, name) for name in _STEPS)), None)
    if (step is not None and step["step"] == "split") or not layout.manifest.exists():
        return RunView(layout, "splitting" if step else "not split yet", step=step)
    manifest = Manifest.read(layout.manifest)
    split_at = layout.manifest.stat().st_mtime
    is_over = layout.is_finished
    attempts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for attempt in read_statistics(Path(manifest.journal), {manifest.split_id}):
        attempts[attempt["rank"]].append(attempt)
    ranks = [
        _rank(layout, manifest, rank, attempts[rank], split_at, is_over)
        for rank in range(plan.num_shards)
    ]
    states = Counter(each.state for each in ranks)
    if is_over:
        state = "done"
    elif step is not None:
        state = "consolidating"
    else:
        state = ", ".join(f"{states[name]} {name}" for name in _FIRST_SHOWN if states[name])
    return RunView(layout, state, ranks, step)


def _running(layout: Layout, name: str) -> dict[str, Any] | None:
    step = read_step(layout.progress(name))
    is_alive = step is not None and time.time() - step["updated_at"] < SILENT_SECONDS
    return step if is_alive else None  # else it was killed


def _rank(
    layout: Layout,
    manifest: Manifest,
    rank: int,
    attempts: list[dict[str, Any]],
    split_at: float,
    is_over: bool,
) -> RankView:
    samples, pending = manifest.rank_samples[rank], manifest.rank_pending[rank]
    view = RankView(rank, "waiting", samples, samples - pending)
    if attempts:
        last = attempts[-1]
        view.finished, view.failed = last["finished"], last["finished_failed"]
        view.last_error = last["last_error"]
        view.state = last["state"]
        view.truncated = sum((Counter(each["truncated"]) for each in attempts), Counter())
        view.unparsed = sum(each.get("unparsed", 0) for each in attempts)  # an earlier version's
        if view.state in ("starting", "running"):
            view.pace = Pace.of([last])
            silent = time.time() - last["updated_at"]
            if silent > SILENT_SECONDS:
                view.state, view.pace = "silent", Pace()
                view.note = f"no sign of life for {duration(silent)}"
    if is_over or is_newer(layout.rank_file(rank), split_at):
        view.state, view.finished, view.pace, view.note = "done", samples, Pace(), ""
        contents = RankContents.read(layout, rank)
        if contents is not None:
            view.truncated, view.failed = contents.truncated, contents.errors_by_stage.total()
            view.unparsed = contents.errors_by_stage["parse"]
    elif layout.failure(rank).exists():
        view.state, view.pace = "failed", Pace()
        view.note = layout.failure(rank).read_text(encoding="utf-8")
    elif view.state == "failed":
        view.note = f"see {layout.log(f'infer.rank{rank}')}"
    return view


# --- on a terminal -------------------------------------------------------------------------------


def screen(views: Iterable[tuple[str, RunView]], height: int) -> RenderableType:
    """What a terminal of ``height`` lines shows of some runs, by the names of their stages."""
    parts: list[RenderableType] = []
    for name, view in views:
        parts.append(_title(name, view))
        if view.step is not None:
            parts.append(Text(f"{view.step['step']}: {describe_step(view.step)}"))
        if view.ranks and not view.is_over:
            warnings = map(_amber, _warnings(view))
            parts += [_table(view, height), *_gpu(view), *warnings, *_last_error(view)]
        elif view.layout.summary.exists() and view.is_over:
            parts.append(summary_table(view.layout.summary))
    return Group(*parts)


def _title(name: str, view: RunView) -> Text:
    title = Text(plain(view.layout.output), "bold")
    title.append(f"  {name + ': ' if name else ''}{view.state}", "green" if view.is_over else "dim")
    return title


def _table(view: RunView, height: int) -> Table:
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    headings = ("", "", "done", "failed", "videos/s", "tokens/s", "")
    table.add_row(*headings, style="dim")
    total = view.total
    table.add_row("all", *_cells(total), _left(total), style="bold")
    urgent = sorted(view.ranks, key=lambda each: (_FIRST_SHOWN.index(each.state), each.rank))
    most = max(height - 8 - len(_gpu(view)), 1)
    shown, rest = urgent[:most], urgent[most:]
    for each in sorted(shown, key=lambda each: each.rank):
        words = each.note.partition("\n")[0] or (_left(each) if each.pace.bound else each.state)
        style = _STYLES.get(each.state, "")
        table.add_row(f"rank {each.rank}", *_cells(each), Text(plain(words), style, no_wrap=True))
    if rest:
        states = Counter(each.state for each in rest)
        table.add_row(
            f"{len(rest)} more", *[""] * 5, ", ".join(f"{n} {s}" for s, n in states.items())
        )
    return table


def _cells(view: RankView) -> tuple[RenderableType, ...]:
    bar = ProgressBar(max(view.samples, 1), view.finished, width=24)
    is_running = view.pace.samples_per_second > 0
    return (
        bar,
        f"{view.finished:,} of {view.samples:,} {share(view.finished, view.samples):>6}",
        f"{view.failed:,}",
        f"{view.pace.samples_per_second:,.2f}" if is_running else "",
        f"{view.pace.tokens_per_second:,.0f}" if is_running else "",
    )


def _left(view: RankView) -> str:
    seconds = view.pace.seconds_left(view.samples - view.finished)
    left = f"{duration(seconds)} left" if seconds is not None else ""
    return ", ".join(filter(None, [left, view.pace.bound]))


def _gpu(view: RunView) -> list[Text]:
    words = describe_gpu(view.total.pace)
    return [Text(words, no_wrap=True, overflow="ellipsis")] if words else []


def _warnings(view: RunView) -> list[str]:
    total = view.total
    return [*filter(None, [describe_cut_off(total.truncated), describe_unparsed(total.unparsed)])]


def _amber(words: str) -> Text:
    return Text(words, "yellow", no_wrap=True, overflow="ellipsis")


def _last_error(view: RunView) -> list[Text]:
    if view.last_error is None:
        return []
    return [Text(_describe_error(*view.last_error), "red", no_wrap=True, overflow="ellipsis")]


def _describe_error(rank: int, error: dict[str, Any]) -> str:
    ago = duration(max(0.0, time.time() - error["at"]))
    what = f"{error['stage']}: {error['type']}: {error['message']}"
    return plain(f"last error, {ago} ago: rank {rank}, sample {error['key']}: {what}", False)


# --- without a terminal --------------------------------------------------------------------------


def lines(name: str, view: RunView) -> list[str]:
    """What is printed of a run where there is no terminal."""
    title = f"{time.strftime('%H:%M:%S')} {view.layout.output}: {name + ': ' if name else ''}"
    if view.step is not None:
        return [f"{title}{view.step['step']}: {describe_step(view.step)}"]
    if not view.ranks:
        return [f"{title}{view.state}"]
    total = view.total
    found = [
        f"{title}{describe_samples(total.finished, total.samples, total.failed)}; "
        f"{describe_pace(total.pace, total.samples - total.finished)}; {view.state}"
    ]
    found += [
        f"  rank {each.rank} {each.state}: {count(each.finished, each.samples)}"
        f"{': ' if each.note else ''}{each.note.partition(chr(10))[0]}"
        for each in view.ranks
        if each.state in ("failed", "silent")
    ]
    found += [f"  {words}" for words in _warnings(view)]
    if view.last_error is not None:
        found.append(f"  {_describe_error(*view.last_error)}")
    return [plain(line) for line in found]


# --- the command ---------------------------------------------------------------------------------


def watch(config: Config, *, once: bool, console: Console) -> None:
    """Show how far the run of ``config`` and its stages is until it is over; with ``once`` only
    how far it is now."""
    stages = config.by_stage()

    def views() -> list[tuple[str, RunView]]:
        return [(name, look(own)) for name, own in stages]

    def is_over(seen: list[tuple[str, RunView]]) -> bool:
        return all(view.is_over for _, view in seen)

    if once or not console.is_terminal:
        while True:
            seen = views()
            if console.is_terminal or is_over(seen):
                console.print(screen(seen, sys.maxsize if once else console.height))
            else:
                for line in (line for each in seen for line in lines(*each)):
                    console.print(line)
            if once or is_over(seen):
                return
            time.sleep(PLAIN_SECONDS)
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            seen = views()
            live.update(screen(seen, console.height), refresh=True)
            if is_over(seen):
                return
            time.sleep(TERMINAL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m video_pipeline.watch", description=__doc__.partition("\n\n")[0]
    )
    parser.add_argument("--configfile", type=Path, help="the configuration of the run")
    parser.add_argument("--directory", type=Path, help="the working directory of the run")
    parser.add_argument("--once", action="store_true", help="how far it is now, and no more")
    args = parser.parse_args()
    config = load_config(args.configfile or {})
    if args.directory:
        cli.enter(args.directory)
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    try:
        watch(config, once=args.once, console=console)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    cli.run(main)
