"""What the journals of an output hold, and what of it can go.

python -m video_pipeline.journal stats --configfile my.yaml
python -m video_pipeline.journal prune --configfile my.yaml [--dry-run]
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from video_pipeline import cli
from video_pipeline.config import Config, load_config
from video_pipeline.journal import count_records
from video_pipeline.layout import Layout
from video_pipeline.plan import read_plan
from video_pipeline.sharding import journal_folder, refuse_live_writers
from video_pipeline.tasks.registry import load_task


@dataclass(frozen=True)
class Journal:
    """The journal of one fingerprint.

    Attributes:
        folder: Where it lies.
        is_current: Whether the configuration as it is now goes on in it.
        answers: Records of answers.
        errors: Records of errors.
        num_bytes: Bytes of its files, with what its attempts spent.
        written: When it was last written to.
    """

    folder: Path
    is_current: bool
    answers: int
    errors: int
    num_bytes: int
    written: datetime


def journals(config: Config, layout: Layout) -> list[Journal]:
    """The journals of an output, the oldest first."""
    task = load_task(config)
    plan = read_plan(layout.plan)
    current = journal_folder(config, layout, task, plan.run_id if plan else "")
    found = []
    for folder in layout.journal.glob("*/"):
        counts: Counter[str] = Counter()
        for path in folder.glob("*.jsonl"):
            counts.update(count_records(path))
        # not the temporary files, which come and go
        status = [path.stat() for path in folder.glob("[!.]*.json*")]
        found.append(
            Journal(
                folder,
                folder.name == current.name,
                counts["output_text"],
                counts["__error"],
                sum(s.st_size for s in status),
                datetime.fromtimestamp(max((s.st_mtime for s in status), default=0)),
            )
        )
    return sorted(found, key=lambda journal: journal.written)


def prune(config: Config, layout: Layout, *, dry_run: bool = False) -> list[Journal]:
    """Remove the journals that the configuration as it is now does not go on in; returns them.

    Raises :class:`UserError` while a job writes to the output.
    """
    refuse_live_writers(layout)
    gone = [journal for journal in journals(config, layout) if not journal.is_current]
    if not dry_run:
        for journal in gone:
            shutil.rmtree(journal.folder)
    return gone


def _table(found: list[Journal]) -> Table:
    table = Table(box=None)
    for name in ("output", "journal", "answers", "errors", "MB", "last written", ""):
        table.add_column(name, no_wrap=True)
    for journal in found:
        table.add_row(
            journal.folder.parent.name,
            journal.folder.name,
            str(journal.answers),
            str(journal.errors),
            f"{journal.num_bytes / 1e6:.1f}",
            f"{journal.written:%Y-%m-%d %H:%M}",
            "in use" if journal.is_current else "can go",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m video_pipeline.journal", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    stats = commands.add_parser("stats", help="what the journals hold")
    remove = commands.add_parser("prune", help="remove the journals of other settings")
    remove.add_argument("--dry-run", action="store_true", help="only show what would go")
    for command in (stats, remove):
        command.add_argument("--configfile", type=Path, required=True)
        command.add_argument("--directory", type=Path, help="the working directory of the run")
    args = parser.parse_args()
    config = load_config(args.configfile)
    if args.directory:
        cli.enter(args.directory)
    stages = [own for _, own in config.by_stage()]
    console = Console() if sys.stdout.isatty() else Console(width=120)
    if args.command == "stats":
        console.print(_table([j for own in stages for j in journals(own, Layout.of(own, 0))]))
        return
    gone = [
        journal for own in stages for journal in prune(own, Layout.of(own, 0), dry_run=args.dry_run)
    ]
    console.print(_table(gone))
    size = sum(journal.num_bytes for journal in gone) / 1e6
    console.print(f"{size:.1f} MB {'can go' if args.dry_run else 'are gone'}")


if __name__ == "__main__":
    cli.run(main)
