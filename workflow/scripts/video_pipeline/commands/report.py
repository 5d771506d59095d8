"""Write the page about a run again, and say where it is.

video-pipeline report --configfile my.yaml
"""

from __future__ import annotations

import os

from video_pipeline.commands import options
from video_pipeline.common.locks import take_output
from video_pipeline.config import Config
from video_pipeline.errors import UserError
from video_pipeline.report.page import write_report
from video_pipeline.run.layout import Layout
from video_pipeline.run.sharding import read_sharding


def report(config: Config) -> Layout:
    """Write the page about the output of ``config``, with the settings in its section ``report``.

    Raises :class:`UserError` if there is no output, or while a run is on.
    """
    sharding = read_sharding(Layout.of(config).sharding)
    layout = Layout.of(config, sharding.num_shards if sharding else 0)
    if sharding is None or not layout.summary.exists():
        raise UserError(
            f"{layout.output.absolute()}: the run is not finished, there is nothing to report; "
            "`snakemake partial` writes what is done so far"
        )
    with take_output(layout.run_lock, layout.output):
        write_report(config, layout, len(os.sched_getaffinity(0)))
    return layout


def main() -> None:
    """Run ``video-pipeline report``."""
    parser = options.parser("report", __doc__)
    options.add_run(parser, is_required=False)
    for _, config in options.enter_run(parser.parse_args()).by_stage():
        print(report(config).report.absolute())
