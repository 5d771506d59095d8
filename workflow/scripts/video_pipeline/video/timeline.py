"""Corrects the times of a stream's packets, so that they never begin again."""

from __future__ import annotations

import math
from typing import Any

from av.audio.stream import AudioStream
from av.frame import Frame
from av.packet import Packet
from av.video.stream import VideoStream

from video_pipeline.video.h264 import FieldPairs

BACKWARD_SECONDS, FORWARD_SECONDS = 0.1, 10.0
"""Decoding times begin again if they go back by more than the first or, in an MPEG stream, jump
ahead by more than the second. The program ffmpeg has the same limits
(``ts_discontinuity_detect``)."""

_AVFMT_TS_DISCONT = 0x0200
"""The flag of a format whose times may begin again (``libavformat/avformat.h``)."""

_NEAR_JOINT = 16
"""Packets before a joint: FFmpeg may mark them as damaged because the stream breaks off there."""


def stamp_of(item: Packet[Any] | Frame) -> int | None:
    """The presentation time of a packet or frame in units of its stream's time base; the decoding
    time if it has none (AVI has no other). torchcodec does the same."""
    return item.pts if item.pts is not None else item.dts


class Timeline:
    """Corrects packets one after the other, from the first of a file on.

    If times begin again, as in pieces that were joined byte by byte, they continue instead, as in
    the program ffmpeg. The second field of a frame gets the time of the first.

    Attributes:
        is_regular: Whether no packet has needed a correction yet.
        is_second_field: Whether the last packet held the second field of a frame.
        is_mpeg: Whether the stream is one of MPEG, whose times may begin again.
    """

    def __init__(self, stream: VideoStream | AudioStream) -> None:
        self.is_regular = True
        self.is_second_field = False
        self.is_mpeg = bool(stream.container.format.flags & _AVFMT_TS_DISCONT)
        assert stream.time_base is not None  # FFmpeg gives each stream one.
        self._backward = BACKWARD_SECONDS / stream.time_base
        self._most = FORWARD_SECONDS / stream.time_base if self.is_mpeg else math.inf
        self._fields: FieldPairs | None = None
        if stream.codec_context.codec.canonical_name == "h264":
            self._fields = FieldPairs(stream.codec_context.extradata or b"")
        self._stamp: int | None = None  # Of the last packet.
        # Decoding times of the file: where the next should be, and the least that it may be.
        self._next, self._least = 0, -math.inf
        self._furthest = -math.inf  # The latest presentation time.
        self._shift = 0
        self._packets = 0
        self._damaged: list[int] = []

    @property
    def damage(self) -> str | None:
        """The packet that the demuxer has marked as damaged, if any, for an error message."""
        return f"packet {self._damaged[0]} is damaged" if self._damaged else None

    def correct(self, packet: Packet[Any]) -> None:
        """Correct the times of the next packet of the file."""
        self._packets += 1
        if packet.is_corrupt:
            self._damaged.append(self._packets)
        self.is_second_field = self._fields is not None and self._fields.is_second(bytes(packet))
        if self.is_second_field:
            self.is_regular = False
            packet.pts = packet.dts = self._stamp
            self._next += packet.duration or 0
            return
        if self._fields is not None and not self._fields.may_come:
            self._fields = None
        decoding_time = packet.dts
        # What an edit list cuts away overlaps with its next piece.
        if decoding_time is not None and not packet.is_discard:
            gap = decoding_time - self._next
            # Pictures that are reordered may be past a gap before decoding times are: then the gap
            # is a part of the stream.
            is_gap = gap > self._most and decoding_time > self._furthest
            if decoding_time < self._least or is_gap:
                self._begin_again(gap)
            self._furthest = max(self._furthest, packet.pts or decoding_time)
            self._next = decoding_time + (packet.duration or 0)
            self._least = decoding_time - self._backward
        if self._shift:
            packet.dts = None if decoding_time is None else decoding_time + self._shift
            packet.pts = None if packet.pts is None else packet.pts + self._shift
        self._stamp = stamp_of(packet)

    def _begin_again(self, gap: int) -> None:
        if self._stamp is not None:  # Else this is the first packet.
            self._shift -= gap
            self._furthest = -math.inf
            self.is_regular = False
            self._damaged = [n for n in self._damaged if n < self._packets - _NEAR_JOINT]
