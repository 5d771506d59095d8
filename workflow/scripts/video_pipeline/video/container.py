"""A video file: what is in it, and its packets from any point on. Nothing is decoded here."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import av
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.frame import Frame
from av.packet import Packet
from av.stream import Discard, Disposition

from video_pipeline.video.access import MediaFile
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.no_video import why_no_video

__all__ = ["EntryPoint", "Video", "VideoReadError", "explain", "stamp_of"]

MAX_FRAME_PIXELS = 8192 * 4352
"""Pixels of the largest frame that is read: the picture size of levels 6 to 6.2 of H.264 and HEVC
(35,651,584 luma samples, Rec. ITU-T H.265 table A.8), 8K with some room."""

FORMATS = (
    "4xm,anm,apng,apv,asf,asf_o,av1,avi,avs,avs2,avs3,bethsoftvid,bfi,bink,bmv,"
    "c93,cavsvideo,cdg,cdxl,cine,dhav,dirac,dnxhd,dsicin,dv,dxa,ea,ea_cdata,evc,"
    "film_cpk,filmstrip,flic,flv,gdv,gif,gxf,h261,h263,h264,hevc,hnm,hxvs,idcin,"
    "iff,ifv,ingenient,ipmovie,ipu,iv8,ivf,ivr,jpegxl_anim,jv,kux,live_flv,lmlm4,"
    "luodat,lvf,lxf,m4v,matroska,mgsts,mjpeg,mjpeg_2000,mm,mods,moflex,mov,mpeg,"
    "mpegts,mpegtsraw,mpegvideo,mpjpeg,msnwctcp,mtv,mv,mvi,mxf,mxg,nc,nsv,nut,nuv,"
    "obu,ogg,paf,pdv,pmp,psxstr,pva,r3d,rl2,rm,roq,rpl,sdr2,ser,sga,siff,"
    "simbiosis_imx,smjpeg,smk,smush,swf,thp,tiertexseq,tmv,ty,usm,vc1,vc1test,"
    "vividas,vivo,vmd,vvc,wc3movie,webm,wsvqa,wtv,xmv,yop,yuv4mpegpipe"
)
"""FFmpeg's names of the formats that are read: all that hold a video in one file. Not those that
open other files or addresses (hls, dash, concat, image2, sdp, vobsub, mlv, ...), which a file of
any name may turn out to be; nor sound, subtitles, single pictures and devices."""

_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}


def explain(error: FFmpegError) -> str:
    """What FFmpeg says about ``error``: the last line of its log, where there is one, and the
    name of the exception, such as ``moov atom not found (InvalidDataError)``."""
    message = error.log[2].strip() if error.log else error.strerror
    return f"{message} ({type(error).__name__})"


def stamp_of(item: Packet | Frame) -> int | None:
    """The presentation time of a packet or frame in units of its stream's time base; the decoding
    time where there is none (AVI has no other). torchcodec does the same."""
    return item.pts if item.pts is not None else item.dts


def header_seconds(uri: str) -> float | None:
    """How long the header of a local file says its video lasts, in seconds; None where it does not
    say. No packet is read beyond those that FFmpeg looks at to know the streams.

    Raises:
        VideoReadError: as :class:`Video` does.
    """
    with MediaFile(uri) as file:
        try:
            with av.open(f"file:{file.path}", options=_OPTIONS, metadata_errors="ignore") as opened:
                stream = opened.streams.best("video")
                if stream is not None and stream.duration:
                    return float(stream.duration * stream.time_base)
                return opened.duration / av.time_base if opened.duration else None
        except FFmpegError as error:
            raise VideoReadError(explain(error)) from error


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
        url: What FFmpeg is given to open: always a local file.
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
        self._file = MediaFile(uri)
        # whatever the name looks like: FFmpeg knows more protocols
        self.url = f"file:{self._file.path}"
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
        self._close_container()
        self._file.close()

    def position_at(self, seconds: float) -> int:
        """Position of the first frame that begins ``seconds`` after the first one, or later.

        Raises:
            VideoReadError: the video ends before.
        """
        wanted = self.stamps[0] + math.ceil(Fraction(seconds) / self.time_base)
        position = bisect_left(self.stamps, wanted)
        if position == len(self.stamps):
            raise VideoReadError(f"it ends after {self.duration:g} s, before {seconds:g} s")
        return position

    @property
    def keyframes(self) -> list[int]:
        """Positions of the frames that can be decoded without others."""
        stamps = {entry.stamp for entry in self._entries}
        return [position for position, stamp in enumerate(self.stamps) if stamp in stamps]

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

    def _close_container(self) -> None:
        if self._container is not None:
            self._container.close()

    def _open(self) -> None:
        """Open the file, at its first packet."""
        self._close_container()
        try:
            self._container = av.open(self.url, options=_OPTIONS, metadata_errors="ignore")
        except (ArgumentError, InvalidDataError) as error:
            if reason := why_no_video(self._file.path):
                raise VideoReadError(reason) from error
            if isinstance(error, ArgumentError) and (not error.log or "whitelist" in error.log[2]):
                raise VideoReadError("not a file of a known video format") from error
            raise
        self.stream = self._container.streams.best("video")
        if self.stream is None or self.stream.disposition & Disposition.attached_pic:
            sound = self._container.streams.best("audio") is not None
            raise VideoReadError("holds sound only, no video" if sound else "no video stream")
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
