"""Show the journals of an output, and remove those of other settings.

video-pipeline journal stats --configfile my.yaml
video-pipeline journal prune --configfile my.yaml [--yes]
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from video_pipeline.commands import options
from video_pipeline.common.files import read_object
from video_pipeline.common.locks import take_output
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.journal.format import count_records
from video_pipeline.run.layout import Layout
from video_pipeline.run.run import Run
from video_pipeline.run.sharding import Sharding, read_sharding
from video_pipeline.run.writers import refuse_live_writers


@dataclass(frozen=True)
class Journal:
    """The journal of one fingerprint."""

    folder: Path
    is_current: bool  # The next run with this configuration continues it.
    is_in_use: bool  # Or the last run wrote it, and the output is made from it.
    answers: int
    errors: int
    num_bytes: int  # The bytes of all its files, statistics included.
    written: datetime  # The time of the last write.


def journals(config: Config, layout: Layout) -> list[Journal]:
    """The journals of an output, the oldest first."""
    sharding = read_sharding(layout.sharding) or Sharding(0)
    # The last run may have had a run_id, which a run that resumes never has.
    current = Run(config, layout).journal("" if config.data.resume else sharding.run_id)
    manifest = read_object(replace(layout, num_shards=sharding.num_shards).manifest)
    last = Path(manifest.get("journal", ""))
    folders = layout.journal.glob("*/")
    return sorted((_journal(folder, current, last) for folder in folders), key=lambda j: j.written)


def _journal(folder: Path, current: Path, last: Path) -> Journal:
    counts = sum(map(count_records, folder.glob("*.jsonl")), Counter[str]())
    # Not the temporary files, which come and go.
    status = [path.stat() for path in folder.glob("[!.]*.json*")]
    return Journal(
        folder,
        folder.name == current.name,
        folder.name in (current.name, last.name),
        counts["output_text"],
        counts["__error"],
        sum(s.st_size for s in status),
        datetime.fromtimestamp(max((s.st_mtime for s in status), default=0)),
    )


def of_other_settings(config: Config, layout: Layout) -> list[Journal]:
    """The journals that the next run with this configuration does not continue, without that of the
    last run.

    Raises :class:`UserError` if it would continue none of them: a single edited setting may
    separate it from the journal of a finished run.
    """
    found = journals(config, layout)
    if found and not any(journal.is_current for journal in found):
        raise UserError(
            f"{layout.journal}: none of the {len(found)} journal(s) there belongs to the settings "
            "in the configuration, so none is removed. Run snakemake with these settings first, or "
            "undo the change of the settings"
        )
    return [journal for journal in found if not journal.is_in_use]


def prune(config: Config, layout: Layout) -> None:
    """Remove the journals :func:`of_other_settings`. Raises :class:`UserError` as that function
    does, and while a run is on."""
    with take_output(layout.run_lock, layout.output):
        refuse_live_writers(layout)
        for journal in of_other_settings(config, layout):
            shutil.rmtree(journal.folder)


def _table(shown: list[Journal]) -> Table:
    table = Table(box=None)
    for name in ("output", "journal", "answers", "errors", "MB", "last written", ""):
        # A name may be longer than a line. It must not take the room of the other columns.
        table.add_column(name, no_wrap=name not in ("output", "journal"), overflow="fold")
    for journal in shown:
        table.add_row(
            journal.folder.parent.name,
            journal.folder.name,
            str(journal.answers),
            str(journal.errors),
            f"{journal.num_bytes / 1e6:.1f}",
            f"{journal.written:%Y-%m-%d %H:%M}",
            "in use" if journal.is_in_use else "can go",
        )
    return table


def main() -> None:
    """Run ``video-pipeline journal``."""
    parser = options.parser("journal", __doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("stats", "prune"),
        default="stats",
        help="stats: what the journals hold (default); prune: the journals of other settings",
    )
    options.add_run(parser)
    parser.add_argument("--yes", action="store_true", help="prune: remove them")
    args = parser.parse_args()
    if args.yes and args.command != "prune":
        parser.error("--yes: only prune removes journals")
    stages = [(own, Layout.of(own)) for _, own in options.enter_run(args).by_stage()]
    console = Console(markup=False, width=None if sys.stdout.isatty() else 120)
    if args.command == "stats":
        console.print(_table([journal for stage in stages for journal in journals(*stage)]))
        return
    others = [journal for stage in stages for journal in of_other_settings(*stage)]
    console.print(_table(others))
    size = f"{sum(journal.num_bytes for journal in others) / 1e6:.1f} MB"
    if not args.yes:
        console.print(f"{size} can go: add --yes to remove them" if others else f"{size} can go")
        return
    for stage in stages:
        prune(*stage)
    console.print(f"{size} are gone")
