"""``python -m video_pipeline.journal``, see :mod:`video_pipeline.commands.journal`."""

from video_pipeline.commands.journal import main
from video_pipeline.common import program

if __name__ == "__main__":
    program.run(main)
