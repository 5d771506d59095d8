"""``python -m video_pipeline.samples``, see :mod:`video_pipeline.commands.samples`."""

from video_pipeline.commands.samples import main
from video_pipeline.common import program

if __name__ == "__main__":
    program.run(main)
