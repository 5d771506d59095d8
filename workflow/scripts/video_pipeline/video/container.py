"""A video file: which frames it has, and when each of them is shown."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from fractions import Fraction
from functools import cached_property

from video_pipeline.video.demuxer import Demuxer, EntryPoint
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.packet_index import index_header, index_packets

ROUNDING_SECONDS = 0.001
"""The error that the times of a file may have: those of Matroska are whole milliseconds."""

EVEN_SHARE = 0.1
"""Frames are evenly spaced if their times are off by at most this share of a frame's time."""


class Video(Demuxer):
    """The best video stream of a file, opened and indexed.

    The index comes from reading every packet once, as torchcodec's exact mode does: headers can
    be wrong about the number of frames, or silent. It costs about 7 microseconds a packet. Where
    packets do not say their times, as in a raw stream, all frames are decoded once to count them.

    Attributes:
        stamps: Times of all frames, ascending, each once, in units of ``time_base``.
        time_base: Seconds in one unit, as a :class:`fractions.Fraction`.
        fps: Frames per second on average: their number / ``duration``, like torchcodec's
            ``average_fps``.
        duration: Seconds from the begin of the first frame to the end of the last.
        index: What its packets say.
    """

    def __init__(self, uri: str, *, by_header: bool = False) -> None:
        """Open and index the video at an address.

        Args:
            uri: See :func:`video_pipeline.storage.opening.open_blob`.
            by_header: Believe the header, and read only it and the first frame of a remote video.

        Raises:
            VideoReadError: There is no such file, or it holds no video, or a packet of the video
                cannot be read.
        """
        super().__init__(uri, in_parts=by_header)
        with self._opening():
            self.index = index_header(self) if by_header else index_packets(self)
        self.time_base = self.index.time_base
        self.stamps = sorted(self.index.ends)
        self.num_frames = len(self.stamps)
        self._end = self._end_of_last(max(self.index.ends.values()))
        self.duration = self._seconds(self._end) - self._seconds(self.stamps[0])
        base_rate = float(self.stream.base_rate or 0)
        self.fps = self.num_frames / self.duration if self.duration > 0 else base_rate

    def _end_of_last(self, end: int) -> int:
        """When the last frame ends. The container says ``end``, but may be wrong: in a video of
        even spacing the last frame lasts as long as the others."""
        if self.num_frames < 3 or not self.is_even:
            return end
        step = (self.stamps[-1] - self.stamps[0]) / (self.num_frames - 1)
        expected = self.stamps[-1] + round(step)
        return expected if abs(end - expected) > max(1.0, EVEN_SHARE * step) else end

    def _seconds(self, stamp: int) -> float:
        # In this order, so that the last bit equals torchcodec's.
        return stamp * self.time_base.numerator / self.time_base.denominator

    def position_shown_at(self, stamp: float) -> int:
        """Position of the frame that is on the screen at ``stamp``, in units of ``time_base``."""
        return max(bisect_right(self.stamps, stamp + self._rounding) - 1, 0)

    def stamp_after(self, position: int) -> int:
        """When the frame at ``position`` makes room for the next one, in units of ``time_base``."""
        if position + 1 < len(self.stamps):
            return self.stamps[position + 1]
        return max(self._end, self.stamps[position] + 1)

    def segment(
        self, start: float | None, end: float | None, *, half_open: bool = False
    ) -> tuple[int, int]:
        """Positions of the first and the last frame that begin between two times.

        If fewer than two begin there, the first is the one that is on the screen at ``start``.

        Args:
            start: Seconds after the begin of the first frame; None: from there on.
            end: Likewise; None: up to the last frame.
            half_open: Leave a frame out that begins at ``end``.

        Raises:
            VideoReadError: The video shows nothing between these times.
        """
        begin = max(start or 0.0, 0.0)
        until = self.duration if end is None else end
        if begin > until or (start and begin >= self.duration):
            raise VideoReadError(
                f"there is nothing from {begin:g} s to {until:g} s: it lasts {self.duration:g} s"
            )
        first, last = 0, len(self.stamps) - 1
        if start is not None:
            first = bisect_left(self.stamps, self._stamp_at(begin) - self._rounding)
        if end is not None and half_open:
            last = bisect_left(self.stamps, self._stamp_at(end) - self._rounding) - 1
        elif end is not None:
            last = bisect_right(self.stamps, self._stamp_at(end) + self._rounding) - 1
        if last <= first:
            first = self.position_shown_at(self._stamp_at(begin))
        return first, max(first, last)

    @cached_property
    def is_even(self) -> bool:
        """Whether all frames are as far apart from each other, but for rounding."""
        first, count = self.stamps[0], len(self.stamps) - 1
        step = (self.stamps[-1] - first) / max(count, 1)
        most = max(1.0, EVEN_SHARE * step)
        return all(abs(stamp - first - n * step) <= most for n, stamp in enumerate(self.stamps))

    @property
    def exact_fps(self) -> float:
        """:attr:`fps` without the rounding of the times: the rate in the header, if the times agree
        with it. By Matroska's whole milliseconds 48 frames at 24 a second may last 1.999 s, and a
        rule that counts whole seconds would leave the last one out."""
        stated = float(self.stream.average_rate or 0)
        if stated and abs(self.num_frames / stated - self.duration) <= 2 * float(self.time_base):
            return stated
        return self.fps

    @property
    def keyframes(self) -> list[int]:
        """Positions of the frames that can be decoded without others."""
        return [position for position, stamp in enumerate(self.stamps) if stamp in self.index.keys]

    def entry_before(self, stamp: int) -> EntryPoint:
        """The last entry point that is not after ``stamp``: where decoding has to start for it."""
        entries = self.index.entries
        return entries[max(bisect_right(entries, stamp, key=lambda entry: entry.stamp) - 1, 0)]

    def _stamp_at(self, seconds: float) -> float:
        """A time after the begin of the first frame in units of ``time_base``."""
        return self.stamps[0] + float(Fraction(seconds) / self.time_base)

    @property
    def _rounding(self) -> float:
        """The error that a time may have, in units of ``time_base``."""
        return min(0.5, float(Fraction(ROUNDING_SECONDS) / self.time_base))
