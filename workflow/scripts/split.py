"""Split the input into chunks, one for each rank."""

from pathlib import Path

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import check_files
from video_pipeline.run.stages import check_stages
from video_pipeline.split.split import split


def main() -> None:
    parser = program.script_parser(__doc__)
    parser.add_argument("--run-id", default="", help="names the journal if data.resume is false")
    parser.add_argument("--threads", type=int, default=1, help="cores of this job")
    help = "the configurations of later stages"
    parser.add_argument("--later", type=Path, nargs="*", default=[], help=help)
    args = program.parse(parser)
    config = load_config(args.config)
    check_files([config])
    if args.later:
        check_stages([load_config(path) for path in args.later])
    split(config, Layout.of(config, args.num_shards), args.run_id, args.threads)


if __name__ == "__main__":
    program.run(main)
