"""Copy the output to the places in ``run.publish``."""

import argparse
from pathlib import Path

from video_pipeline.common import program
from video_pipeline.config import load_config
from video_pipeline.publish.publish import publish
from video_pipeline.run.layout import Layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the resolved configuration")
    config = load_config(program.parse(parser).config)
    publish(config, Layout.of(config, 0))


if __name__ == "__main__":
    program.run(main)
