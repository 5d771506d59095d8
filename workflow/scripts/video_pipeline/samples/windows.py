"""Cuts a long video into windows, and puts the records of windows together by video."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from video_pipeline.samples.identity import content_key

CLIP = "clip"
"""Field of a window's input object: its ``number`` from 0, ``of`` how many windows, and the
``segment`` (``video_start`` and ``video_end``) of the line that was cut, if it had one."""

CUT = ("video_start", "video_end")
"""The other fields in which the windows of a video differ."""


def is_window(raw: dict[str, Any]) -> bool:
    """Whether an input object is a window of a video."""
    clip = raw.get(CLIP)
    return isinstance(clip, dict) and {"number", "of", "segment"} == clip.keys()


def window_id(of: str | int, raw: dict[str, Any]) -> str:
    """The id of a window, from the id ``of`` its video. Times are written as floats, so that 60 and
    60.0 give the same id."""
    start, end = (None if raw.get(name) is None else float(raw[name]) for name in CUT)
    return f"{of}@{start}-{end}"


def windows(raw: dict[str, Any], edges: list[float]) -> list[dict[str, Any]]:
    """The input objects of the windows that ``edges``, in seconds, cut a video into.

    Their times are floats, so that the request digest does not depend on how an edge was written.
    """
    segment = {name: raw[name] for name in CUT if name in raw}
    return [
        {
            **raw,
            "video_start": float(start),
            "video_end": float(stop),
            CLIP: {"number": number, "of": len(edges) - 1, "segment": segment},
        }
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
    ]


def whole(raw: dict[str, Any]) -> dict[str, Any]:
    """The input object of the video that ``raw`` is a window of, as it was before it was cut."""
    if not is_window(raw):
        return raw
    shared = {name: value for name, value in raw.items() if name not in (*CUT, CLIP)}
    return {**shared, **raw[CLIP]["segment"]}


def by_video(records: Iterable[dict[str, Any]], video_field: str) -> Iterator[dict[str, Any]]:
    """One object for each video, from the records of its windows, which follow each other::

    {"__key": a hash of the input object, "input": the input object before it was cut,
     "clips": [{"video_start": 0.0, "video_end": 30.0, ... the window's record}, ...]}
    """
    for uncut, of_video in itertools.groupby(map(_apart, records), lambda r: whole(r["input"])):
        clips = []
        for record in of_video:
            window = record.pop("input")
            clips.append({**{name: window.get(name) for name in CUT}, **record})
        yield {"__key": content_key(uncut, video_field), "input": uncut, "clips": clips}


def _apart(record: dict[str, Any]) -> dict[str, Any]:
    """``record``; an earlier record of the same window moves from the input to it."""
    raw, previous = record["input"], record["input"].get("previous")
    if isinstance(previous, dict) and previous.get("__key") == record["__key"]:
        record["previous"] = raw.pop("previous")
    return record
