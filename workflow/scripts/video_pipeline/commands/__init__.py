"""The commands ``python -m video_pipeline.retry``, ``watch``, ``preview`` and ``journal``."""
