"""Prints lines about all jobs together, beside Snakemake's lines about each job."""

from __future__ import annotations

import sys
import textwrap
import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import orjson

from video_pipeline.common.files import read_object
from video_pipeline.common.own_command import command_line
from video_pipeline.common.printable import printable
from video_pipeline.errors import Failure
from video_pipeline.run.reopening import count_failed
from video_pipeline.run.stages import Stage
from video_pipeline.run.statistics import read_statistics

FIRST_LINES, LINE_SECONDS = (10.0, 20.0, 30.0), 60.0
"""Seconds before each line about a running stage: at the start people watch closely."""

MOST_FAILURES = 3
"""The most failed samples that are named at the end."""


class ProgressLines:
    """Prints to stderr, so that ``--quiet`` does not drop the lines, and a logger that draws on the
    terminal can put them above its drawing."""

    def __init__(self, stages: Sequence[Stage], scripts: Path) -> None:
        """``scripts``: the folder of the workflow's scripts."""
        self._stages = stages
        self._scripts = scripts
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._print_lines, daemon=True)

    def begin(self) -> None:
        """Name the command that watches the run, and print lines from now on."""
        for stage in self._stages:
            command = self._command("watch", stage)
            _print(f"{stage.title}watch {stage.layout.output} from another terminal: {command}")
        self._thread.start()

    def end(self) -> None:
        """Print no more lines."""
        self._is_over.set()

    def show_summary(self) -> None:
        """Print each new summary's table, the files' paths, and the next command after failures."""
        from rich.console import Console

        from video_pipeline.report.summary import summary_table

        for stage in self._stages:
            layout = stage.layout
            if not layout.summary.exists() or not layout.is_finished:
                continue
            Console(stderr=True, markup=False).print(summary_table(layout.summary))
            show_files(stage)
            if failed := read_object(layout.summary).get("samples", {}).get("error"):
                _print(f"errors  {layout.errors}")
                for words in _first_failures(stage):
                    _print(f"failed  {words}")
                if failed > MOST_FAILURES:
                    _print(f"failed  and {failed - MOST_FAILURES:,} more")
                if stage.config.data.resume and (closed := num_to_retry(stage)):
                    _print(
                        f"To try {closed:,} failed sample(s) again, first run "
                        f"{self._command('retry', stage)}"
                    )

    def _print_lines(self) -> None:
        for seconds in chain(FIRST_LINES, repeat(LINE_SECONDS)):
            if self._is_over.wait(seconds):
                return
            for line in self.lines():
                _print(line)

    def lines(self) -> Iterator[str]:
        """A line for each running stage, about all of its ranks."""
        from video_pipeline.commands.watch import lines, look

        for stage in self._stages:
            try:
                view = look(stage.config)
            except (Failure, OSError):  # The jobs say what is wrong; a later line may be possible.
                continue
            if (view.ranks or view.step) and not view.is_over:
                line = lines(f"{stage.layout.output}: {stage.title}", view)[0]
                yield f"{line}; {view.waits}" if view.waits else line

    def _command(self, name: str, stage: Stage) -> str:
        return command_line(name, stage.layout.config, self._scripts)


def show_files(stage: Stage) -> None:
    """Print where the output and the page about the run are, if they are there."""
    if stage.layout.output.exists():
        _print(f"output  {stage.layout.output}\nreport  {stage.layout.report}")


def num_to_retry(stage: Stage) -> int:
    """The number of failed samples in the output that ``retry`` opens again."""
    return count_failed(stage.layout, stage.config)[0]


def _first_failures(stage: Stage) -> Iterator[str]:
    """The first failed samples of the output, each with its video, if it has one, and its error."""
    from video_pipeline.report.records import is_changed

    if not stage.layout.errors.exists():
        return  # The user has moved it away.
    summary = read_object(stage.layout.summary)
    jobs = read_statistics(stage.layout.journal_now(summary["journal"]), summary["splits"])
    with open(stage.layout.errors, "rb") as lines:
        for record in map(orjson.loads, islice(lines, MOST_FAILURES)):
            video, error = record["input"].get(stage.config.data.video_field), record["__error"]
            name = video if video and isinstance(video, str) else f"sample {record['__key']}"
            now = " (the file is another one now)" if is_changed(record, stage.config, jobs) else ""
            yield f"{name}: {error['stage']}: {textwrap.shorten(error['message'], 200)}{now}"


def _print(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
