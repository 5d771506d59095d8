"""Files of other versions: an earlier one is written again or read with what it has, a later one is
a clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from helpers import Splitter, samples
from rich.console import Console
from video_pipeline.commands.watch import look, screen
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.report.page import write_report
from video_pipeline.report.summary import read_summary, summary_table
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.origin import what_changed
from video_pipeline.run.sharding import Sharding, read_sharding
from video_pipeline.run.statistics import read_statistics

NEWER = "newer version of video-pipeline"


@pytest.fixture
def finished(splitting: Splitter) -> Splitter:
    """A run that is over."""
    splitting(samples(2), 1)
    infer(splitting.run.config, splitting.layout, 0, 1)
    consolidate(splitting.run.config, splitting.layout)
    Sharding(1).write(splitting.layout.sharding)
    return splitting


def edit(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; None: remove."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def statistics_file(splitting: Splitter) -> Path:
    (path,) = Path(splitting.manifest.journal).glob("*.statistics.json")
    return path


def test_chunks_of_an_earlier_version_are_split_again(splitting: Splitter) -> None:
    splitting(samples(2), 1)
    config, layout = splitting.run.config, splitting.layout
    edit(layout.manifest, version=None)
    assert what_changed(config, layout) == ["the version of the chunks"]
    edit(layout.manifest, origin=None)  # The first versions did not write it.
    assert what_changed(config, layout) == ["the version of the chunks"]
    with pytest.raises(UserError, match=r"earlier version.*--forcerun split_<stage>`\)$"):
        Manifest.read(layout)
    splitting()
    assert what_changed(config, layout) == []


def test_a_later_version_is_a_clear_error(finished: Splitter) -> None:
    config, layout = finished.run.config, finished.layout
    path = statistics_file(finished)
    settings = path.with_name("settings.json")
    journal = Path(finished.manifest.journal)
    readers: dict[Path, Callable[[], object]] = {
        layout.manifest: lambda: Manifest.read(layout),
        layout.sharding: lambda: read_sharding(layout.sharding),
        layout.summary: lambda: read_summary(layout),
        path: lambda: read_statistics(journal),
        settings: lambda: finished(num_shards=1),
    }
    for file, read in readers.items():
        before = file.read_text()
        read()
        edit(file, version=99)
        with pytest.raises(UserError, match=f"{file.name}.*{NEWER}"):
            read()
        file.write_text(before)
    edit(layout.manifest, version=99)
    with pytest.raises(UserError, match=NEWER):
        what_changed(config, layout)


def test_a_key_that_did_not_exist_yet_breaks_nobody_who_looks(finished: Splitter) -> None:
    config, layout = finished.run.config, finished.layout
    path = statistics_file(finished)
    for file in (path, layout.summary):
        before = file.read_text()
        for name in json.loads(before):
            edit(file, **{name: None})
            views = [("", look(config))]
            Console(file=StringIO()).print(screen(views, 40))
            Console(file=StringIO()).print(summary_table(layout.summary))
            with suppress(UserError):  # a summary that lacks too much
                write_report(config, layout, 1)
            file.write_text(before)
