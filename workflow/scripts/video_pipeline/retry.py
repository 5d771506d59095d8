"""``python -m video_pipeline.retry``, see :mod:`video_pipeline.commands.retry`."""

from video_pipeline.commands.retry import main
from video_pipeline.common import program

if __name__ == "__main__":
    program.run(main)
