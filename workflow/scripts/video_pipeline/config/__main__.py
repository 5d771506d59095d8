"""Writes the generated configuration files: ``python -m video_pipeline.config DIR``."""

import argparse
from pathlib import Path

from video_pipeline.config.generate import FILES

parser = argparse.ArgumentParser(description="Write the generated configuration files.")
parser.add_argument("folder", type=Path, help="the repository's config/ folder")
folder = parser.parse_args().folder
for name, generate in FILES.items():
    (folder / name).write_text(generate(), encoding="utf-8")
