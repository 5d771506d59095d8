"""Infer the pending samples of one rank and write its rank file."""

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.errors import UserError
from video_pipeline.infer.infer import infer
from video_pipeline.run.layout import Layout
from video_pipeline.run.origin import check_files


def main() -> None:
    parser = program.script_parser(__doc__)
    parser.add_argument("--gpus", type=int, help="GPUs of this job; 0: it writes its rank file")
    parser.add_argument("--rank", type=int, required=True, help="the chunk to infer, from 0")
    parser.add_argument("--threads", type=int, default=1, help="cores of this job")
    parser.add_argument("--plain", action="store_true", help="one sample at a time, to debug")
    args = program.parse(parser)
    if args.rank not in range(args.num_shards):
        raise UserError(f"--rank {args.rank}: the ranks are 0 to {args.num_shards - 1}")
    config = load_config(args.config)
    check_files([config])
    layout = Layout.of(config, args.num_shards)
    infer(config, layout, args.rank, args.threads, only_writes=args.gpus == 0, plain=args.plain)


if __name__ == "__main__":
    program.run(main)
