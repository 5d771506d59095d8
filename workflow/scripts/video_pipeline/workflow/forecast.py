"""Forecasts what a run would infer, in words, for `snakemake -n`. It reads only the small files of
the last split; only the next split knows the exact number."""

from __future__ import annotations

from pathlib import Path

from video_pipeline.common import versions
from video_pipeline.common.files import read_object
from video_pipeline.config import Config
from video_pipeline.config.source import Source
from video_pipeline.errors import Failure
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import changes_since


def forecast(config: Config, layout: Layout) -> str:
    """The number of pending samples of ``layout`` and the reason; or why it is not known."""
    source = config.data.source
    name = source.name
    manifest = read_object(layout.manifest)
    if source.is_local and source.kind != "pattern" and not Path(source.place).exists():
        return f"the samples are not known before {name} is written"
    if manifest and manifest.get("version", 0) < versions.CHUNKS:
        return "an earlier version split it. Split will say how many samples are inferred, and why"
    if not manifest.get("origin"):
        return (
            f"no sample is known yet, because {name} was not split into {layout.num_shards} "
            f"chunks.{_lines(source, ' It has {}.')} Split looks up what is answered already"
        )
    samples, changes = manifest["samples"], changes_since(manifest["origin"], config)
    reasons = _named("changed setting", [c.words for c in changes if c.kind == "setting"])
    reasons += _named("changed prompt or plugin", [c.words for c in changes if c.kind == "code"])
    if not config.data.resume:
        reasons = ["data.resume is false", *reasons]
    if reasons:
        pending = f"up to {samples:,} of {samples:,} samples are pending: {'; '.join(reasons)}"
    else:
        pending = _not_finished(config, samples)
    if any(change.kind == "input" for change in changes):
        pending += (
            f"; and {name} has changed:{_lines(source, ' {},')} {manifest['lines']:,} lines at the "
            f"last split. Split will say how many samples are new"
        )
    if layout.reopened.exists():
        pending += "; and failed samples were opened again"
    return pending


def _not_finished(config: Config, samples: int) -> str:
    from video_pipeline.commands.watch import look

    try:
        total = look(config).total
    except Failure as error:
        return f"not known: {error}"
    left = total.samples - total.finished
    return f"{left:,} of {samples:,} samples are pending{': new or not finished' if left else ''}"


def _named(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}{'s' if len(names) > 1 else ''}: {', '.join(names)}"] if names else []


def _lines(source: Source, words: str) -> str:
    """The number of lines of a JSONL in ``words``; empty for another input, which split reads."""
    if not source.is_local or source.kind != "jsonl" or source.compression:
        return ""
    with open(source.place, "rb") as stream:
        return words.format(f"{sum(not line.isspace() for line in stream):,} lines")
