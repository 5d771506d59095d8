"""Writes the generated configuration files: ``python -m video_pipeline.config DIR``."""

import argparse
from pathlib import Path

from video_pipeline.config.generate import write_generated

parser = argparse.ArgumentParser(description="Write the generated configuration files.")
parser.add_argument("folder", type=Path, help="the repository's config/ folder")
write_generated(parser.parse_args().folder)
