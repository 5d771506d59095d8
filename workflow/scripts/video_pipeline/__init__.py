"""Runs a video vision-language model over many videos: the library behind the workflow."""

__version__ = "0.1.0"
