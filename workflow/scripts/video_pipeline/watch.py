"""``python -m video_pipeline.watch``, see :mod:`video_pipeline.commands.watch`."""

from video_pipeline.commands.watch import main
from video_pipeline.common import program

if __name__ == "__main__":
    program.run(main)
