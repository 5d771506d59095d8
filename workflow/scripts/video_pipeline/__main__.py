"""``python -m video_pipeline`` and the console script, see :mod:`video_pipeline.commands.main`."""

from video_pipeline.commands.main import main
from video_pipeline.common import program


def run() -> None:
    """Run ``video-pipeline``."""
    program.run(main)


if __name__ == "__main__":
    run()
