"""Turns the fetcher off: decode processes download their videos themselves."""

from video_pipeline.infer import prefetch

prefetch.MOST_STARTS = 0
