"""Run a video vision-language model over a JSONL of videos: the library behind the workflow."""

__version__ = "0.1.0"
