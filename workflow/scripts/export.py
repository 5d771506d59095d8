"""Write the output again, as Parquet files with a dataset card."""

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.export.export import export
from video_pipeline.run.layout import Layout


def main() -> None:
    config = load_config(program.parse(program.script_parser(__doc__, of_shards=False)).config)
    export(config, Layout.of(config))


if __name__ == "__main__":
    program.run(main)
