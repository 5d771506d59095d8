"""Merge the rank files into the output, or write what is finished so far."""

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.output.consolidation import consolidate, consolidate_partial
from video_pipeline.run.layout import Layout


def main() -> None:
    parser = program.script_parser(__doc__)
    parser.add_argument("--partial", action="store_true", help="write what is finished so far")
    args = program.parse(parser)
    config = load_config(args.config)
    run = consolidate_partial if args.partial else consolidate
    run(config, Layout.of(config, args.num_shards))


if __name__ == "__main__":
    program.run(main)
