"""``data.group_by``: the windows of a video, from an earlier stage, become one sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from video_pipeline.samples.identity import content_key
from video_pipeline.samples.input import BadLines, InputSample, is_record
from video_pipeline.samples.windows import CLIP, CUT, is_window, whole, window_id


def grouped(
    samples: Iterable[InputSample], bad: BadLines, video_field: str
) -> Iterator[InputSample]:
    """One sample for each video of ``samples``: the line that was cut, and the earlier run's record
    of each window, in order, under ``previous``::

        {"clips": [{"video_start": 0.0, "video_end": 30.0, ... the window's record}, ...]}

    A video that was not cut has one clip. Windows that the run's condition dropped have none. A
    video with a window that failed is left out: half of it would pass for the whole. A video whose
    windows do not all follow each other is added to ``bad``.
    """
    for windows in _by_video(samples):
        first = windows[0].raw
        # Their numbers follow each other, see _follows.
        if is_window(first) and (first[CLIP]["number"] or len(windows) != first[CLIP]["of"]):
            bad.add(
                windows[0].line,
                f"data.group_by: {len(windows)} of the {first[CLIP]['of']} windows of this video "
                "follow each other here; all must, in their order",
            )
            continue
        yield _fused(windows, video_field)


def _by_video(samples: Iterable[InputSample]) -> Iterator[list[InputSample]]:
    windows: list[InputSample] = []
    for sample in samples:
        if windows and not _follows(sample.raw, windows[-1].raw):
            yield windows
            windows = []
        windows.append(sample)
    if windows:
        yield windows


def _follows(raw: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether ``raw`` is the next window after ``other`` of the same video."""
    if not (is_window(raw) and is_window(other)):
        return False
    is_next: bool = raw[CLIP]["number"] == other[CLIP]["number"] + 1
    return is_next and _uncut(raw) == _uncut(other)


def _uncut(raw: dict[str, Any]) -> dict[str, Any]:
    return whole({name: value for name, value in raw.items() if name != "previous"})


def _fused(windows: list[InputSample], video_field: str) -> InputSample:
    first, uncut = windows[0], _uncut(windows[0].raw)
    clips: list[dict[str, Any]] = []
    previous: dict[str, Any] = {"clips": clips}
    for window in windows:
        record = dict(window.raw.get("previous") or {})
        if "previous" in record:  # It is of the run before the video was cut.
            previous["previous"] = record.pop("previous")
        if window.left_out is None:
            clips.append({**{name: window.raw.get(name) for name in CUT}, **record})
    raw = {**uncut, "previous": previous}
    left_out = None if clips else first.left_out
    reasons = [window.left_out for window in windows if window.left_out]
    failed = [reason for reason in reasons if reason["by"] != "where"]
    if failed:
        message = f"{len(failed)} of {len(windows)} windows: {failed[0]['message']}"
        left_out = {"by": "error", "message": message}
    key = _key(first, uncut, video_field)
    return InputSample(first.line, key, raw, orjson.dumps(raw), True, left_out)


def _key(window: InputSample, uncut: dict[str, Any], video_field: str) -> str:
    """The key of the line that was cut."""
    if not is_window(window.raw):
        return window.key
    times = window_id("", window.raw)  # The key of a window is an id and these, or a hash.
    if window.key.endswith(times):
        return window.key.removesuffix(times)
    return content_key(uncut, video_field)


def whole_videos(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Divide ``blocks`` of whole lines anew, so that none ends between two windows of a video."""
    held = b""
    for block in blocks:
        block, end = held + block, len(held) + len(block)
        while end:
            begin = block.rfind(b"\n", 0, end - 1) + 1
            if _begins_video(block[begin:end]):
                break
            end = begin
        begin = begin if end else 0
        if begin:
            yield block[:begin]
        held = block[begin:]
    if held:
        yield held


def _begins_video(line: bytes) -> bool:
    if not line.strip():
        return False
    try:
        value = orjson.loads(line)
        raw = value["input"] if is_record(value) else value
        return not is_window(raw) or raw[CLIP]["number"] == 0
    except (ValueError, AttributeError, TypeError):
        return True  # The reader of the line says what is wrong with it.
