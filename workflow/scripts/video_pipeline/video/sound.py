"""Reads the sound of a video, in time with its frames."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container.input import InputContainer
from av.error import FFmpegError
from numpy.typing import NDArray

from video_pipeline.video.container import Video
from video_pipeline.video.demuxer import explain, packets_of
from video_pipeline.video.errors import VideoReadError, note_damage
from video_pipeline.video.timeline import Timeline, stamp_of

MOST_SECONDS = 3600.0
"""The longest sound that is read: 230 MB at 16,000 samples a second. Times in a file may be wrong,
and silence fills the gap between two of them."""

LEAST_SECONDS = 0.1
"""A shorter sound counts as none: feature extractors need some windows of 25 ms."""

_GAP_SECONDS = 0.1
"""Sound that is earlier or later than expected by more than this does not continue the sound before
it. The program ffmpeg has the same limit (``min_hard_comp`` of ``aresample``)."""

_BEFORE_SECONDS = 1.0
"""Decoding begins so long before a segment, because a packet may need those before it."""

_MOST_SAMPLES, _FRAME_SECONDS = 1 << 20, 60.0
"""Size and length of the largest frame: resampled, a few samples of 1 Hz fill any memory."""


def read_sound(
    video: Video, start: float | None, end: float | None, *, rate: int
) -> NDArray[np.float32] | None:
    """Read the best audio stream of a video, as one channel: the mean of all.

    Args:
        start: Seconds after the begin of the first frame; None: from there on. Sound before it is
            left out. Where there is none, at first or in between, there is silence.
        end: Likewise; None: up to the end of the sound. Nothing is added after that.
        rate: Samples per second of the result.

    Returns:
        Samples from -1.0 to 1.0; None if there is no audio stream, or no sound in the segment.

    Raises:
        VideoReadError: The sound is damaged or too long.
    """
    begin = max(start or 0.0, 0.0)
    try:
        with video.open_container() as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                return None
            zero = float(video.stamps[0] * video.time_base) + begin
            until = MOST_SECONDS if end is None else min(end - begin, MOST_SECONDS)
            pieces = list(_pieces(_frames(container, stream, zero), until, rate))
    except FFmpegError as error:
        raise VideoReadError(f"its sound cannot be read: {explain(error)}") from error
    return _joined(pieces, round(until * rate), least=round(LEAST_SECONDS * rate))


def _joined(
    pieces: list[tuple[int, NDArray[np.float32]]], most: int, *, least: int
) -> NDArray[np.float32] | None:
    """The pieces in their places, counted in samples, from 0 to ``most``; None if too short."""
    pieces = [(first, piece) for first, piece in pieces if first < most]
    count = min(max((first + len(piece) for first, piece in pieces), default=0), most)
    if count < least:
        return None
    sound = np.zeros(count, np.float32)
    for first, piece in pieces:
        inside = piece[max(-first, 0) : max(count - first, 0)]
        start = max(first, 0)
        sound[start : start + len(inside)] = inside
    return sound


def _pieces(
    frames: Iterator[tuple[float | None, AudioFrame]], until: float, rate: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Resampled sound of ``until`` seconds, and where it begins, in samples. Frames that follow
    each other are resampled together."""
    resampler: av.AudioResampler | None = None
    place, expected, kind = 0, 0.0, None
    for seconds, frame in frames:
        seconds = expected if seconds is None else seconds
        lasts = frame.samples / frame.sample_rate
        if lasts > _FRAME_SECONDS or seconds > until == MOST_SECONDS:
            raise VideoReadError(
                f"its sound goes on for more than {MOST_SECONDS:g} s, or its times are wrong: give "
                "the sample a segment, video_start and video_end"
            )
        if seconds > until:
            break
        kind, before = (frame.format.name, frame.layout.name, frame.sample_rate), kind
        if resampler is None or kind != before or abs(seconds - expected) > _GAP_SECONDS:
            if resampler is not None:
                yield from _resampled(resampler, None, place)
            resampler = av.AudioResampler(format="fltp", rate=rate)
            place, expected = round(seconds * rate), seconds
        expected += lasts
        for first, piece in _resampled(resampler, frame, place):
            yield first, piece
            place = first + len(piece)
    if resampler is not None:
        yield from _resampled(resampler, None, place)


def _resampled(
    resampler: av.AudioResampler, frame: AudioFrame | None, place: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    for resampled in resampler.resample(frame):
        if resampled is None:  # The end of sound that needed no resampling.
            continue
        piece = resampled.to_ndarray().mean(axis=0, dtype=np.float32)
        yield place, piece
        place += len(piece)


def _frames(
    container: InputContainer, stream: AudioStream, zero: float
) -> Iterator[tuple[float | None, AudioFrame]]:
    """Decoded frames from ``zero``, a time of the file, on, and how many seconds after it they
    begin, if that is known.

    A stream may begin in the middle of what its decoder needs: only packets that are refused later
    on are damage.
    """
    decoder, base = stream.codec_context, stream.time_base
    if decoder is None or base is None:
        raise VideoReadError("no decoder for the codec of its sound")
    decoder.thread_count = 1
    decoder.options = {"max_samples": str(_MOST_SAMPLES)}
    timeline = Timeline(stream)
    is_heard = False
    for packet in packets_of(container, stream):
        timeline.correct(packet)
        stamp = stamp_of(packet)
        seconds = None if stamp is None else float(stamp * base) - zero
        if seconds is not None and seconds < -_BEFORE_SECONDS:
            continue
        try:
            frames = decoder.decode(packet)
        except FFmpegError as error:
            where = "" if seconds is None else f" {seconds + zero:.3f} s into the file"
            message = f"its sound is damaged{where}: {explain(error)}"
            if is_heard and (seconds is None or seconds >= 0):
                raise VideoReadError(message) from error
            note_damage(message)
            continue
        for frame in frames:
            is_heard = True
            pts = stamp_of(frame)
            yield None if pts is None else float(pts * base) - zero, frame
