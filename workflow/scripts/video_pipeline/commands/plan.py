"""Estimate what a run will take, without a GPU and without weights: tokens, GPU-hours, cost, and
the videos that cannot be read. It does the same as ``snakemake plan``.

video-pipeline plan --configfile my.yaml
"""

from __future__ import annotations

import os

from video_pipeline.commands import options
from video_pipeline.estimate.estimate import plan_stages
from video_pipeline.run.origin import check_files


def main() -> None:
    """Run ``video-pipeline plan``."""
    parser = options.parser("plan", __doc__)
    options.add_run(parser, is_required=False)
    configs = [config for _, config in options.enter_run(parser.parse_args()).by_stage()]
    check_files(configs)
    plan_stages(configs, len(os.sched_getaffinity(0)))
