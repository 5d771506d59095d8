"""The built-in dataset ``clips``."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, TypeGuard

from video_pipeline.data.base import raw_of
from video_pipeline.data.qwen_video import QwenVideoDataset
from video_pipeline.data.registry import register_dataset
from video_pipeline.errors import SPLIT_AGAIN, UserError
from video_pipeline.samples.windows import CLIP, is_window, windows
from video_pipeline.storage.opening import is_remote
from video_pipeline.video.errors import VideoReadError


@register_dataset("clips")
class ClipsDataset(QwenVideoDataset):
    """Cuts long videos into windows. Each window is a sample with a record of its own, and the end
    of a run joins the records of a video again.

    A window is ``task_params.clip_seconds`` long; a remainder shorter than half of that stays with
    the last window. If the sample has ``cuts``, these are the seconds at which the windows after
    the first begin. The video, ``video_start`` and ``video_end`` bound all windows. A window ends
    before the frame at its ``video_end``, which is the first of the next window. A window of an
    earlier run stays as it is.
    """

    version = QwenVideoDataset.version + 1

    def __getitem__(self, i: int) -> dict[str, Any]:
        item = super().__getitem__(i)
        if not is_window(item["raw"]):
            raise VideoReadError(
                "not cut into windows: it could not be read when the input was split, and can be "
                f"now; {SPLIT_AGAIN}"
            )
        return item

    def visual(self, part: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        if "video" in part and is_window(sample):
            part = {"half_open": True, **part}
        return super().visual(part, sample)

    @classmethod
    def expand(cls, sample: dict[str, Any], params: dict[str, Any]) -> list[dict[str, Any]]:
        raw = raw_of(sample)
        if is_window(raw):
            return [raw]  # It comes from an earlier run: a failed sample, or a record.
        if CLIP in raw:
            raise ValueError(f"{CLIP}: windows have this field; give yours another name")
        uri = sample["__video_uri"]
        if isinstance(uri, list):
            raise ValueError("clips cuts one video, and this sample has a list of images")
        begin, end = max(_seconds(raw, "video_start") or 0.0, 0.0), _seconds(raw, "video_end")
        try:
            end = _duration(uri) if end is None else _end_within(uri, end)
        except VideoReadError:
            if end is None:
                return [raw]  # It becomes an error record, see __getitem__.
        cuts = raw.get("cuts")
        if cuts is None:
            cuts = _even_cuts(begin, end, _clip_seconds(params))
        elif not isinstance(cuts, list) or not all(_is_number(cut) for cut in cuts):
            raise ValueError(f"cuts: expected a list of seconds, got {cuts!r:.80}")
        edges = [begin, *(cut for cut in sorted(set(cuts)) if begin < cut < end), end]
        return windows(raw, edges)


def _even_cuts(begin: float, end: float, seconds: float) -> list[float]:
    count = max(1, math.floor((end - begin) / seconds + 0.5))
    return [round(begin + index * seconds, 6) for index in range(1, count)]


def _clip_seconds(params: dict[str, Any]) -> float:
    seconds = params.get("clip_seconds")
    if not _is_number(seconds) or not seconds > 0:
        raise UserError(
            f"task_params.clip_seconds: expected the length of a window in seconds, got {seconds!r}"
        )
    return seconds


def _seconds(raw: dict[str, Any], name: str) -> float | None:
    value = raw.get(name)
    if value is not None and not _is_number(value):
        raise ValueError(f"{name}: {value!r:.80} is not a number of seconds")
    return value


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _end_within(uri: str, end: float) -> float:
    """``end``, or the end of the video if that comes first. Packets are read only if the header
    does not say that the video lasts so long, and a remote video is copied only if it denies it."""
    from video_pipeline.video.header import read_header

    duration = read_header(uri, with_size=False).duration
    lasts = is_remote(uri) if duration is None else end <= duration
    return end if lasts else min(end, _duration(uri))


def _duration(uri: str) -> float:
    """Seconds of a video, from its packets: headers can be wrong."""
    from video_pipeline.video.container import Video

    with Video(uri) as video:
        return round(video.duration, 6)
