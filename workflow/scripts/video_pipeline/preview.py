"""``python -m video_pipeline.preview``, see :mod:`video_pipeline.commands.preview`."""

from video_pipeline.commands.preview import main
from video_pipeline.common import program

if __name__ == "__main__":
    program.run(main)
