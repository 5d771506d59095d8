"""Estimate what the run will take, from its samples, without a GPU and without the model."""

import argparse
from pathlib import Path

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.estimate.estimate import plan_stages
from video_pipeline.run.origin import check_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    help = "the resolved configuration of each stage"
    parser.add_argument("--config", type=Path, nargs="+", required=True, help=help)
    parser.add_argument("--log", type=Path, help="where the output of this program goes")
    parser.add_argument("--threads", type=int, default=1, help="cores of this job")
    args = program.parse(parser)
    configs = [load_config(path) for path in args.config]
    check_files(configs)
    plan_stages(configs, args.threads)


if __name__ == "__main__":
    program.run(main)
