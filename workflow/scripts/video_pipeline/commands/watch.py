"""Watch a run: its progress, the progress of each rank, and what limits them. Only files are read,
so it works beside a local run, on another machine of a cluster, and after the end.

video-pipeline watch --configfile my.yaml
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from video_pipeline.commands import options
from video_pipeline.common.files import is_newer, read_object
from video_pipeline.common.locks import is_locked
from video_pipeline.common.logs import last_error
from video_pipeline.common.printable import printable
from video_pipeline.common.progress import count, describe_step, duration, share
from video_pipeline.config import Config
from video_pipeline.errors import Failure, UserError
from video_pipeline.output.rank_files import RankContents
from video_pipeline.report.summary import summary_table
from video_pipeline.run.answers import describe_cut_off, describe_unparsed
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.pace import Pace, describe_gpu, describe_progress
from video_pipeline.run.sharding import read_sharding
from video_pipeline.run.statistics import read_statistics
from video_pipeline.run.writers import SILENT_SECONDS, why_silent

TERMINAL_SECONDS, PLAIN_SECONDS = 2.0, 30.0
"""How often a terminal is redrawn; how often lines are printed without a terminal."""

State = Literal["waiting", "starting", "running", "silent", "failed", "done"]

_WIDE = 110
"""Columns that all figures of a rank need. A narrower terminal shows the most urgent ones first."""

_AT_WORK = {"starting", "running"}
_URGENCY: tuple[State, ...] = ("failed", "silent", "running", "starting", "waiting", "done")
_STYLES = {"failed": "red", "silent": "yellow", "running": "cyan", "done": "green"}


@dataclass
class RankView:
    """The progress of one rank.

    ``truncated`` and ``unparsed`` come from the rank file. Before that exists they come from the
    attempts since the input was split, which parse only their first answers.
    """

    rank: int
    state: State  # "silent": it is not at work, see why_silent.
    samples: int  # Those of its chunk.
    finished: int
    failed: int = 0
    pace: Pace = field(default_factory=Pace)  # That of its running job.
    note: str = ""  # Why it failed, or how long it has been silent.
    seconds: float = 0.0  # Time since its job began.
    last_error: dict[str, Any] | None = None  # See JobStatistics.
    truncated: Counter[str] = field(default_factory=Counter)  # By the setting that cut them off.
    unparsed: int = 0  # Failed in stage parse.

    @property
    def words(self) -> str:
        """Its state in words."""
        if self.state == "starting":
            return f"loading the model for {duration(self.seconds)}"
        if self.note:
            return f"{self.state}: {self.note.splitlines()[0]}"
        return self.left if self.pace.bound else self.state

    @property
    def left(self) -> str:
        """The remaining time, and what limits the pace, in words."""
        seconds = self.pace.seconds_left(self.samples - self.finished)
        words = f"{duration(seconds)} left" if seconds is not None else ""
        return ", ".join(filter(None, [words, self.pace.bound]))


@dataclass
class RunView:
    """The progress of the run of one output."""

    layout: Layout
    state: str  # In a word or two.
    ranks: list[RankView] = field(default_factory=list)  # Empty before the input was split.
    step: dict[str, Any] | None = None  # The Progress of split or consolidate while that runs.
    missing: Path | None = None  # The file that has to be written before there are ranks.
    split_at: float = 0.0  # When the manifest was written.

    @property
    def is_over(self) -> bool:
        """Whether the output is finished."""
        return self.state == "done"

    @property
    def total(self) -> RankView:
        """All ranks together."""
        return RankView(
            -1,
            "running",
            sum(view.samples for view in self.ranks),
            sum(view.finished for view in self.ranks),
            sum(view.failed for view in self.ranks),
            sum((view.pace for view in self.ranks), Pace()),
            truncated=sum((view.truncated for view in self.ranks), Counter()),
            unparsed=sum(view.unparsed for view in self.ranks),
        )

    @property
    def waits(self) -> str:
        """What it waits for, in words; empty if it is running, or over."""
        states = {view.state for view in self.ranks}
        if self.missing is not None:
            if self.state != "not begun" and (error := last_error(self.layout.log("split"))):
                return f"the rule split failed: {error}"
            who = "the rule split" if is_locked(self.layout.run_lock) else "snakemake"
            path = printable(self.missing.absolute())
            return f"waits for {who}: there is no {path} yet (--directory names another folder)"
        if self.is_over or self.step or not states:
            return ""
        loading = [view.seconds for view in self.ranks if view.state == "starting"]
        if loading and "running" not in states:
            whose = "the model" if len(loading) == 1 else f"{len(loading):,} models, the first"
            return f"waits for {whose}, which has been loading for {duration(max(loading))}"
        log = self.layout.log("consolidate")
        if states == {"done"} and is_newer(log, self.split_at) and (error := last_error(log)):
            return f"the rule consolidate failed: {error}"
        if not states & _AT_WORK and not is_locked(self.layout.run_lock):
            return "waits for snakemake: run the same command again"
        if states == {"waiting"}:
            return "waits for its first inference job, which may be starting"
        return "waits for the rule consolidate" if states == {"done"} else ""

    @property
    def warnings(self) -> list[str]:
        """The problems of the answers so far, in words."""
        words = describe_cut_off(self.total.truncated), describe_unparsed(self.total.unparsed)
        return list(filter(None, words))

    @property
    def last_error(self) -> str:
        """The last failed sample, in words; empty if none has failed."""
        errors = [(view.last_error, view.rank) for view in self.ranks if view.last_error]
        if not errors:
            return ""
        error, rank = max(errors, key=lambda entry: entry[0]["at"])
        ago = duration(max(0.0, time.time() - error["at"]))
        text = "sample {key}: {stage}: {type}: {message}".format(**error)
        return printable(f"last error, {ago} ago: rank {rank}, {text}", newlines=False)


def look(config: Config) -> RunView:
    """The progress of the run of ``config``, without its stages."""
    try:
        return _look(config)
    except (Failure, OSError):
        # A file vanishes before it is read if split replaces the chunks, or a job begins again.
        # Another look does not find it. Any other error comes again.
        return _look(config)


def _look(config: Config) -> RunView:
    layout = Layout.of(config)
    if (sharding := read_sharding(layout.sharding)) is None:
        return RunView(layout, "not begun", missing=layout.sharding)
    layout = Layout.of(config, sharding.num_shards)
    step = _running_step(layout, "split") or _running_step(layout, "consolidate")
    if (step is not None and step["step"] == "split") or not layout.manifest.exists():
        missing = None if step else layout.manifest
        return RunView(layout, "splitting" if step else "not split yet", step=step, missing=missing)
    manifest = Manifest.read(layout)
    is_over = layout.is_finished
    split_at = layout.manifest.stat().st_mtime  # Last: without chunks an old output looks finished.
    attempts: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for attempt in read_statistics(Path(manifest.journal), {manifest.split_id}):
        attempts[attempt["rank"]].append(attempt)
    ranks = [
        _rank(layout, manifest, rank, attempts[rank], split_at, is_over)
        for rank in range(sharding.num_shards)
    ]
    state = "consolidating" if step is not None else _count_states(ranks)
    return RunView(layout, "done" if is_over else state, ranks, step, split_at=split_at)


def _running_step(layout: Layout, name: str) -> dict[str, Any] | None:
    step = read_object(layout.progress(name))
    # A step without an update for so long was killed.
    return step if time.time() - step.get("updated_at", 0.0) < SILENT_SECONDS else None


def _rank(
    layout: Layout,
    manifest: Manifest,
    rank: int,
    attempts: list[dict[str, Any]],
    split_at: float,
    is_over: bool,
) -> RankView:
    samples, pending = manifest.rank_samples[rank], manifest.rank_pending[rank]
    # An earlier version did not count the failures of earlier runs.
    failed = manifest.rank_failed[rank] if manifest.rank_failed else 0
    view = RankView(rank, "waiting", samples, samples - pending, failed)
    if attempts:
        last = attempts[-1]
        view.finished, view.failed = last["finished"], last["finished_failed"]
        view.state, view.last_error = last["state"], last["last_error"]
        view.truncated = sum((Counter(attempt["truncated"]) for attempt in attempts), Counter())
        view.unparsed = sum(attempt["unparsed"] for attempt in attempts)
        if view.state in ("starting", "running"):
            view.pace = Pace.of(last)
            view.seconds = max(0.0, time.time() - last["started_at"])
            if why := why_silent(layout, rank, last["updated_at"]):
                view.state, view.pace, view.note = "silent", Pace(), why
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
        view.note = f"see {layout.log(f'infer.rank{rank}').absolute()}"
    return view


def _count_states(ranks: Sequence[RankView]) -> str:
    """``1 failed, 3 running``."""
    states = Counter(view.state for view in ranks)
    return ", ".join(f"{states[state]} {state}" for state in _URGENCY if states[state])


# --- on a terminal -------------------------------------------------------------------------------


def screen(views: Sequence[tuple[str, RunView]], height: int, width: int = _WIDE) -> RenderableType:
    """The content of a terminal about some runs, with the titles of their stages. Summaries come
    when all are over: earlier, they would take the room of a run that is not."""
    parts: list[RenderableType] = []
    is_over = all(view.is_over for _, view in views)
    height -= 3 * (len(views) - 1)  # Lines of the other runs.
    for title, view in views:
        state = f"  {title}{view.state}", "green" if view.is_over else "dim"
        parts.append(Text(printable(view.layout.output), "bold").append(*state))
        if view.step is not None:
            parts.append(Text(f"{view.step['step']}: {describe_step(view.step)}"))
        if view.waits:
            parts.append(Text(view.waits, "yellow"))
        if view.ranks and not view.is_over:
            parts += _progress(view, height, is_wide=width >= _WIDE)
        elif view.layout.summary.exists() and is_over:
            parts.append(summary_table(view.layout.summary, is_titled=False))
    return Group(*parts)


def _progress(view: RunView, height: int, *, is_wide: bool) -> list[RenderableType]:
    """The table of the ranks, and notes: below it, or in a narrow terminal above it."""
    gpu = describe_gpu(view.total.pace)
    notes = [(gpu, ""), *((words, "yellow") for words in view.warnings), (view.last_error, "red")]
    if is_wide:
        below = [Text(w, style, no_wrap=True, overflow="ellipsis") for w, style in notes if w]
        return [_table(view, height - 9 if gpu else height - 8), *below]
    above = [Text(words, style) for words, style in reversed(notes) if words]
    # A note may take several lines.
    return [*above, _narrow_table(view, (height - 8) // 2)]


def _urgent(view: RunView, num_rows: int) -> tuple[list[RankView], list[RankView]]:
    """Up to ``num_rows`` ranks, the most urgent first, and the other ranks."""
    urgent = sorted(view.ranks, key=lambda rank: (_URGENCY.index(rank.state), rank.rank))
    return urgent[: max(num_rows, 1)], urgent[max(num_rows, 1) :]


def _table(view: RunView, num_rows: int) -> Table:
    """All ranks together, then up to ``num_rows`` ranks, the most urgent ones."""
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_row("", "", "done", "failed", "videos/s", "tokens/s", "", style="dim")
    table.add_row("all", *_cells(view.total), view.total.left, style="bold")
    shown, others = _urgent(view, num_rows)
    for rank in sorted(shown, key=lambda rank: rank.rank):
        text = Text(printable(rank.words), _STYLES.get(rank.state, ""), no_wrap=True)
        table.add_row(f"rank {rank.rank}", *_cells(rank), text)
    if others:
        table.add_row(f"{len(others)} more", *[""] * 5, _count_states(others))
    return table


def _narrow_table(view: RunView, num_rows: int) -> Table:
    """The same in fewer columns, with the most urgent rank first."""
    table = Table.grid(padding=(0, 1))
    for justify in ("left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_column(ratio=1)
    table.add_row("", "done", "failed", "", style="dim")
    shown, others = _urgent(view, num_rows)
    for name, rank, words, style in (
        ("all", view.total, view.total.left, "bold"),
        *((f"rank {r.rank}", r, r.words, _STYLES.get(r.state, "")) for r in shown),
    ):
        done = share(rank.finished, rank.samples)
        table.add_row(name, done, f"{rank.failed:,}", Text(printable(words), style))
    if others:
        table.add_row(f"{len(others)} more", "", "", _count_states(others))
    return table


def _cells(view: RankView) -> tuple[RenderableType, ...]:
    is_running = view.pace.samples_per_second > 0
    return (
        ProgressBar(max(view.samples, 1), view.finished, width=24),
        f"{view.finished:,} of {view.samples:,} {share(view.finished, view.samples):>6}",
        f"{view.failed:,}",
        f"{view.pace.samples_per_second:,.2f}" if is_running else "",
        f"{view.pace.tokens_per_second:,.0f}" if is_running else "",
    )


# --- without a terminal --------------------------------------------------------------------------


def lines(title: str, view: RunView) -> list[str]:
    """The lines about a run without a terminal. The first begins with the time and ``title``."""
    title = f"{time.strftime('%H:%M:%S')} {title}"
    if view.step is not None:
        return [f"{title}{view.step['step']}: {describe_step(view.step)}"]
    if not view.ranks or view.is_over:
        return [": ".join(filter(None, [f"{title}{view.state}", view.waits]))]
    total = view.total
    words = describe_progress(total.finished, total.samples, total.failed, total.pace)
    texts = [f"{title}{words}; {view.state}"]
    for rank in view.ranks:
        if rank.state in ("failed", "silent"):
            note = f": {rank.note.splitlines()[0]}" if rank.note else ""
            done = count(rank.finished, rank.samples)
            texts.append(f"  rank {rank.rank} {rank.state}: {done}{note}")
    texts += [f"  {note}" for note in (view.waits, *view.warnings, view.last_error) if note]
    return [printable(text) for text in texts]


# --- the command ---------------------------------------------------------------------------------


def watch(config: Config, *, once: bool, console: Console) -> None:
    """Show the progress of ``config`` and its stages until the run is over, or ``once``. Raises
    :class:`UserError` if the run ends without its output."""
    stages = [(f"{name}: " if name else "", stage) for name, stage in config.by_stage()]
    was_held = False  # Not on a host that sees only its own locks.
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not once else None
    if not console.is_terminal:
        for title, stage in stages:
            console.print(f"{title}{printable(stage.data.output_jsonl)}")
    with live or nullcontext():
        while True:
            # Before the look, which then sees all that a run has left.
            is_held = any(is_locked(Layout.of(stage).run_lock) for _, stage in stages)
            views = [(title, look(stage)) for title, stage in stages]
            is_over = all(view.is_over for _, view in views)
            if live is not None:
                live.update(screen(views, console.height, console.width), refresh=True)
            elif console.is_terminal:
                console.print(screen(views, sys.maxsize, console.width))
            else:
                for title, view in views:
                    console.print(*lines(title, view), sep="\n")
                    if is_over and view.layout.summary.exists():
                        console.print(summary_table(view.layout.summary, is_titled=False))
            if once or is_over:
                return
            jobs = any(v.step or _AT_WORK & {rank.state for rank in v.ranks} for _, v in views)
            if was_held and not is_held and not jobs:
                raise UserError("the run has ended without its output: run the same command again")
            was_held = is_held or was_held
            time.sleep(PLAIN_SECONDS if live is None else TERMINAL_SECONDS)


def main() -> None:
    """Run ``video-pipeline watch``."""
    parser = options.parser("watch", __doc__)
    options.add_run(parser, is_required=False)
    parser.add_argument("--once", action="store_true", help="show the progress once and end")
    args = parser.parse_args()
    config = options.enter_run(args)
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    watch(config, once=args.once, console=console)
