"""The commands of ``video-pipeline``, such as ``video-pipeline watch``."""
