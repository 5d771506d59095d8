"""What a run would infer, in words, for `snakemake -n`: from what the last split has written, and
from nothing that takes long. Only the next split knows it exactly."""

from __future__ import annotations

from pathlib import Path

from video_pipeline.common.files import read_object
from video_pipeline.config import Config
from video_pipeline.errors import Failure
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import changes_since

_COMPRESSED = (".gz", ".zst")


def forecast(config: Config, layout: Layout) -> str:
    """How many samples of ``layout`` are pending, and why. It says so if that is not known."""
    return f"{layout.output}: {_pending(config, layout)}"


def _pending(config: Config, layout: Layout) -> str:
    input_jsonl = config.data.input_jsonl
    manifest = read_object(layout.manifest)
    if not input_jsonl.exists():
        return f"the samples are not known before {input_jsonl} is written"
    if not manifest.get("origin"):
        return (
            f"no sample is known yet, because {input_jsonl} was not split into {layout.num_shards} "
            f"chunks. It has {_lines(input_jsonl)}. Split looks up what is answered already"
        )
    samples, changes = manifest["samples"], changes_since(manifest["origin"], config)
    settings = _named("changed setting", [c.words for c in changes if c.kind == "setting"])
    code = _named("changed prompt or plugin", [c.words for c in changes if c.kind == "code"])
    reasons = [*settings, *code]
    if not config.data.resume:
        reasons = ["data.resume is false", *reasons]
    if reasons:
        pending = f"up to {samples:,} of {samples:,} samples are pending: {'; '.join(reasons)}"
    else:
        pending = _not_finished(config, samples)
    if any(change.kind == "input" for change in changes):
        pending += (
            f"; and {input_jsonl} has changed: {_lines(input_jsonl)}, "
            f"{manifest['lines']:,} at the last split. Split will say how many samples are new"
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
    plural = "s" if len(names) > 1 else ""
    return [f"{kind}{plural}: {', '.join(names)}"] if names else []


def _lines(path: Path) -> str:
    if path.suffix in _COMPRESSED:
        return "an unknown number of lines, because it is compressed"
    with open(path, "rb") as stream:
        return f"{sum(not line.isspace() for line in stream):,} lines"
