"""Open failed samples again, so that the next ``snakemake`` infers just those.

video-pipeline retry --configfile my.yaml [--stage read]
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from video_pipeline.commands import options
from video_pipeline.common.locks import take_output
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.reopening import (
    STAGES,
    count_failed,
    find_errors,
    stages_to_retry,
    write_reopens,
)
from video_pipeline.run.sharding import Sharding, read_sharding
from video_pipeline.run.writers import refuse_live_writers


def retry(config: Config, stages: Container[str] | None = None) -> int:
    """Open the errors of ``stages`` again, and return the number of their samples. None: those that
    :func:`stages_to_retry` names. The output stays until the next run replaces it.

    Raises :class:`UserError` if nothing has run yet, the next run does not continue the journal of
    the last one, or while a run is on (even if no job is running at the moment).
    """
    sharding = _last_sharding(config)
    if sharding is None:
        layout = Layout.of(config)
        if read_sharding(layout.sharding) is None:
            raise UserError(f"{layout.output}: nothing has run yet, there is nothing to retry")
        raise UserError(
            f"{layout.output}: the last run has not divided its input ({layout.log('split')} says "
            "why), so its samples are not known. Run snakemake, then retry"
        )
    layout = Layout.of(config, sharding.num_shards)
    if not config.data.resume:
        raise UserError("data.resume is false: every invocation starts from nothing anyway")
    with take_output(layout.run_lock, layout.output):
        refuse_live_writers(layout)
        return _retry(layout, stages or stages_to_retry(config))


def _retry(layout: Layout, stages: Container[str]) -> int:
    manifest = Manifest.read(layout)
    journal = Path(manifest.journal)
    if "-" in journal.name:  # It ends with the run_id of a run without data.resume.
        last = f"{layout.output}: the last run had data.resume: false"
        raise UserError(f"{last}, and no run continues its journal. Run snakemake, then retry")
    total = 0
    index = manifest.read_index()
    for rank in range(manifest.num_shards):
        errors = list(find_errors(manifest.open_chunk(layout, rank), index, journal, stages))
        if errors:
            # Before the journal: if this is killed, nothing must look finished.
            layout.reopened.touch()
            layout.rank_file(rank).unlink(missing_ok=True)
        total += write_reopens(journal, errors)
    return total


def _last_sharding(config: Config) -> Sharding | None:
    """The sharding of the last run; None if there was no run, or its input was not split."""
    sharding = read_sharding(Layout.of(config).sharding)
    if sharding is None or not Layout.of(config, sharding.num_shards).manifest.exists():
        return None
    return sharding


def main() -> None:
    """Run ``video-pipeline retry``."""
    parser = options.parser("retry", __doc__)
    options.add_run(parser)
    parser.add_argument("--stage", choices=STAGES, help="only failures of this stage")
    args = parser.parse_args()
    config = options.enter_run(args)
    stages = (args.stage,) if args.stage else None
    first, *later = (own for _, own in config.by_stage())
    # A later stage may not have begun yet.
    count = sum(retry(own, stages) for own in (first, *filter(_last_sharding, later)))
    print(
        f"{count} failed sample(s) are open again; run snakemake to infer them"
        if count
        else "no failed samples to retry"
    )
    stay = sum(count_failed(Layout.of(own), own)[1] for own in (first, *later))
    if stay and args.stage in (None, "length"):
        print(
            f"{stay:,} answer(s) were cut off (stage length) and would be again: raise "
            "sampling.max_tokens, which infers all samples again, or infer only those, with "
            "another data.output_jsonl; with a schema, run.retry_truncated lets retry open them"
        )
