"""A video file: what is in it, and its packets from any point on. Nothing is decoded here."""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import av
from av.error import FFmpegError
from av.frame import Frame
from av.packet import Packet
from av.stream import Discard

MAX_FRAME_PIXELS = 8192 * 4352
"""Pixels of the largest frame that is read: the picture size of levels 6 to 6.2 of H.264 and HEVC
(35,651,584 luma samples, Rec. ITU-T H.265 table A.8), 8K with some room."""


class VideoReadError(ValueError):
    """A video that cannot be read. The message says what is wrong with it, without its path."""


def explain(error: FFmpegError) -> str:
    """What FFmpeg says about ``error``: the last line of its log, where there is one, and the
    name of the exception, such as ``moov atom not found (InvalidDataError)``."""
    message = error.log[2].strip() if error.log else error.strerror
    return f"{message} ({type(error).__name__})"


def stamp_of(item: Packet | Frame) -> int | None:
    """The presentation time of a packet or frame in units of its stream's time base; the decoding
    time where there is none (AVI has no other). torchcodec does the same."""
    return item.pts if item.pts is not None else item.dts


@dataclass(frozen=True)
class EntryPoint:
    """A packet that decoding can start from.

    Attributes:
        stamp: Its time in units of the stream's time base.
        ordinal: Number of packets of the stream that come before it in the file.
    """

    stamp: int
    ordinal: int


class Video:
    """The best video stream of a file, opened and indexed.

    The index comes from reading every packet once, as torchcodec's exact mode does: headers can
    be wrong about the number of frames, or silent. It costs about 7 microseconds a packet.

    Attributes:
        url: What FFmpeg is given to open.
        decoder: The codec context of the stream: one thread.
        stamps: Times of all frames, ascending, in units of ``time_base``.
        time_base: Seconds in one unit, as a :class:`fractions.Fraction`.
        fps: Frames per second on average: their number / ``duration``, like torchcodec's
            ``average_fps``.
        begin: When the first frame begins, in seconds.
        end: When the last frame ends, in seconds.
        duration: ``end - begin``.
        start: The first packet of the file.
        position: Ordinal of the packet that :meth:`read` gives next.
    """

    def __init__(self, uri: str) -> None:
        """Open a local path, ``file://`` or ``http(s)://``.

        Raises:
            VideoReadError: there is no such file, or it is not a file that holds a video of which
                every packet can be read.
        """
        self.url = _url(uri)
        self._container = None
        try:
            self._open()
            self._index()
        except FFmpegError as error:
            self.close()
            raise VideoReadError(explain(error)) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._container is not None:
            self._container.close()

    def entry_before(self, stamp: int) -> EntryPoint:
        """The last entry point that is not after ``stamp``: where decoding has to start for it."""
        after = bisect_right(self._entries, stamp, key=lambda entry: entry.stamp)
        return self._entries[max(after - 1, 0)]

    def go_to(self, entry: EntryPoint) -> None:
        """Make ``entry`` the packet that :meth:`read` gives next."""
        if not self._seek(entry):
            if self.position > entry.ordinal:
                self._open()
            while self.position < entry.ordinal:
                self.read()
        self.position = entry.ordinal

    def read(self) -> Packet | None:
        """The next packet of the stream, in the order of the file. The last one is empty: it makes
        the decoder give up the frames it holds back. Then None."""
        self.position += 1
        return next(self._packets, None)

    def _open(self) -> None:
        """Open the file, at its first packet."""
        self.close()
        self._container = av.open(self.url, metadata_errors="ignore")
        self.stream = self._container.streams.best("video")
        if self.stream is None:
            raise VideoReadError("no video stream")
        for other in self._container.streams:
            if other is not self.stream:
                other.discard = Discard.all
        self._packets: Iterator[Packet] = self._container.demux(self.stream)
        self.position = 0

    def _index(self) -> None:
        self._prepare_decoder()
        self.time_base = self.stream.time_base
        self._entries: list[EntryPoint] = []
        self._can_seek = True
        shown: list[tuple[int, int]] = []  # begin and end
        while (packet := self.read()) is not None:
            stamp = stamp_of(packet)
            if stamp is None:
                if packet.size == 0:
                    break
                raise VideoReadError("its packets carry no timestamps")
            if packet.is_keyframe or not self._entries:
                self._entries.append(EntryPoint(stamp, self.position - 1))
            if not packet.is_discard:  # cut away by an edit list, but needed by later frames
                shown.append((stamp, stamp + (packet.duration or 0)))
        self._check_complete(packets=self.position - 1)
        if not shown:
            raise VideoReadError("its video stream has no frames")
        self.start = self._entries[0]
        self._entries.sort(key=lambda entry: entry.stamp)
        self.stamps = sorted(begin for begin, _ in shown)
        self.begin = self._seconds(self.stamps[0])
        self.end = self._seconds(max(end for _, end in shown))
        self.duration = self.end - self.begin
        if self.duration > 0:
            self.fps = len(self.stamps) / self.duration
        else:
            self.fps = float(self.stream.base_rate or 0)

    def _seconds(self, stamp: int) -> float:
        # in this order, so that the last bit equals torchcodec's
        return stamp * self.time_base.numerator / self.time_base.denominator

    def _prepare_decoder(self) -> None:
        self.decoder = self.stream.codec_context
        if self.decoder is None:
            raise VideoReadError("no decoder for the codec of its video stream")
        width, height = self.decoder.width, self.decoder.height
        if width * height > MAX_FRAME_PIXELS:
            raise VideoReadError(
                f"frames of {width}x{height} pixels are too large, at most {MAX_FRAME_PIXELS} "
                "pixels are read"
            )
        self.decoder.thread_count = 1
        # the header of the file may say less than the stream itself
        self.decoder.options = {"max_pixels": str(MAX_FRAME_PIXELS)}

    def _check_complete(self, packets: int) -> None:
        """MP4 and MOV list their packets up front, so a file that breaks off is noticed."""
        if "mp4" in self._container.format.name:
            expected = len(self.stream.index_entries)
            if packets < expected:
                raise VideoReadError(
                    f"the file is truncated: {packets} of {expected} frames are there"
                )

    def _seek(self, entry: EntryPoint) -> bool:
        """Let the demuxer seek; False if it landed elsewhere, as those of MPEG transport and
        program streams do, and from then on."""
        if not self._can_seek:
            return False
        try:
            self._container.seek(entry.stamp, stream=self.stream)
            packets = self._container.demux(self.stream)
            first = next(packets)
        except FFmpegError:
            self._can_seek = False
        else:
            self._can_seek = first.is_keyframe and stamp_of(first) == entry.stamp
        if not self._can_seek:
            self._open()
            return False
        self._packets = chain([first], packets)
        return True


def _url(uri: str) -> str:
    """``uri`` for FFmpeg. A local path must be that of a regular file with something in it: to
    open a pipe would wait for ever."""
    if uri.startswith(("http://", "https://")):
        return uri
    path = uri.removeprefix("file://")
    try:
        status = os.stat(path)
    except OSError as error:
        raise VideoReadError(os.strerror(error.errno)) from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoReadError("is a directory, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoReadError("not a regular file")
    if status.st_size == 0:
        raise VideoReadError("file is empty (0 bytes)")
    return f"file:{path}"  # whatever the name looks like: FFmpeg knows more protocols
