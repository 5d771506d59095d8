"""``python -m video_pipeline.scenes``, see :mod:`video_pipeline.commands.scenes`."""

from video_pipeline.commands.scenes import main
from video_pipeline.common import program

if __name__ == "__main__":
    program.run(main)
