"""Windows of long videos, put together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from video_pipeline.identity import content_key

CLIP = "clip"
"""Field of a window's input object: its ``number``, from 0, and ``of`` how many."""

CUT = ("video_start", "video_end", CLIP)
"""The fields in which the windows of a video differ."""


def by_video(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One object for each video, from the records of its windows, which follow each other::

    {"__key": a hash of the input object, "input": the input object before it was cut,
     "clips": [{"video_start": 0.0, "video_end": 30.0, ... the window's record}, ...]}
    """
    video: dict[str, Any] | None = None
    for record in records:
        raw = record.pop("input")
        clip = raw.get(CLIP) or {}
        if video is None or not clip.get("number"):
            if video is not None:
                yield video
            whole = {name: value for name, value in raw.items() if name not in CUT}
            video = {"__key": content_key(whole), "input": whole, "clips": []}
        times = {name: raw.get(name) for name in ("video_start", "video_end")}
        video["clips"].append({**times, **record})
    if video is not None:
        yield video
