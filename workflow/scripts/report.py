"""Write the page about a finished run."""

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.report.page import write_report
from video_pipeline.run.layout import Layout


def main() -> None:
    parser = program.script_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="cores of this job")
    args = program.parse(parser)
    config = load_config(args.config)
    write_report(config, Layout.of(config, args.num_shards), args.threads)


if __name__ == "__main__":
    program.run(main)
