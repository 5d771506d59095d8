"""A video file: what is in it, and its packets from any point on. Nothing is decoded here."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain

import av
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.format import Flags
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame

from video_pipeline.video.access import MediaFile
from video_pipeline.video.errors import VideoReadError, note_damage
from video_pipeline.video.no_video import why_no_video
from video_pipeline.video.timeline import Timeline, stamp_of

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

SEEKABLE_CODECS = frozenset(
    {"av1", "dnxhd", "ffv1", "flv1", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video"}
    | {"mpeg4", "msmpeg4v2", "msmpeg4v3", "prores", "theora", "vc1", "vp8", "vp9", "vvc"}
    | {"wmv1", "wmv2", "wmv3"}
)
"""FFmpeg's names of the codecs that can be decoded from any key frame on. The decoders of others
may need what only the first packets say, such as a palette: they are fed from the start."""

ROUNDING_SECONDS = 0.001
"""How far the times of a file may be from what was meant: those of Matroska are whole
milliseconds."""

DEFAULT_RATE = Fraction(25)
"""Frames per second of a raw stream that does not say its rate: FFmpeg's own default."""

EVEN_SHARE = 0.1
"""Frames whose times are off by at most this share of the time between two frames are taken as
evenly spaced."""


def explain(error: FFmpegError) -> str:
    """What FFmpeg says about ``error``: the last line of its log, where there is one, and the
    name of the exception, such as ``moov atom not found (InvalidDataError)``."""
    message = error.log[2].strip() if error.log else error.strerror
    return f"{message} ({type(error).__name__})"


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
    be wrong about the number of frames, or silent. It costs about 7 microseconds a packet. Where
    packets do not say their times, as in a raw stream, all frames are decoded once to count them.

    Attributes:
        url: What FFmpeg is given to open: always a local file.
        decoder: The codec context of the stream: one thread.
        stamps: Times of all frames, ascending, each once, in units of ``time_base``.
        time_base: Seconds in one unit, as a :class:`fractions.Fraction`.
        fps: Frames per second on average: their number / ``duration``, like torchcodec's
            ``average_fps``.
        begin: When the first frame begins, in seconds.
        end: When the last frame ends, in seconds.
        duration: ``end - begin``.
        start: The first packet of the file.
        position: Ordinal of the packet that :meth:`read` gives next.
        is_seekable: Whether decoding may start at any key frame.
        is_counted: Whether frames are known by their number in the order in which the decoder gives
            them, because their packets do not say their times.
        damage: What the decoder said when it refused a packet or gave a damaged frame, else None.
        file_damage: What was wrong with a packet when all were read, else None.
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
        self._timeline: Timeline | None = None
        self.is_counted = False
        self.damage: str | None = None
        self.file_damage: str | None = None
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
        position = bisect_left(self.stamps, self._stamp_at(seconds) - self._rounding)
        if position == len(self.stamps):
            raise VideoReadError(f"it ends after {self.duration:g} s, before {seconds:g} s")
        return position

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

        Where fewer than two begin there, the first is the one that is on the screen at ``start``.

        Args:
            start: seconds after the begin of the first frame; None: from there on.
            end: likewise; None: up to the last frame.
            half_open: leave a frame out that begins at ``end``.

        Raises:
            VideoReadError: the video shows nothing between these times.
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
        return all(
            abs(stamp - first - number * step) <= most for number, stamp in enumerate(self.stamps)
        )

    @property
    def keyframes(self) -> list[int]:
        """Positions of the frames that can be decoded without others."""
        return [position for position, stamp in enumerate(self.stamps) if stamp in self._keys]

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
        packet = next(self._packets, None)
        if packet is not None and self._timeline is not None:
            self._timeline.correct(packet)
        return packet

    def decode(self, packet: Packet | None) -> list[VideoFrame]:
        """The frames that the decoder gives for ``packet``; for None, those it holds back. One
        that it refuses gives none; this is noted in ``damage``, and so are frames that it could not
        decode in full."""
        try:
            frames = self.decoder.decode(packet)
        except FFmpegError as error:
            self._note(explain(error))
            return []
        if any(frame.is_corrupt for frame in frames):
            self._note("a part of the picture is lost")
        return frames

    def _note(self, what: str) -> None:
        if self.damage is None:
            self.damage = f"damaged near frame {self.position} of {len(self.stamps)}: {what}"

    def _stamp_at(self, seconds: float) -> float:
        """A time after the begin of the first frame in units of ``time_base``."""
        return self.stamps[0] + float(Fraction(seconds) / self.time_base)

    @property
    def _rounding(self) -> float:
        """By how much a time may be off, in units of ``time_base``."""
        return min(0.5, float(Fraction(ROUNDING_SECONDS) / self.time_base))

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
        if self._timeline is not None:
            self._timeline = Timeline(self.stream)

    def _index(self) -> None:
        self._prepare_decoder()
        self.time_base = self.stream.time_base
        self._timeline = timeline = Timeline(self.stream)
        entries: list[EntryPoint] = []
        ends: dict[int, int] = {}  # by begin
        errors_before, _ = av.logging.get_last_error()
        ascend, last = True, -math.inf
        self.stamps: list[int] = []
        self._keys: set[int] = set()
        self.is_seekable = self.decoder.codec.canonical_name in SEEKABLE_CODECS
        # FFmpeg makes up times for a raw stream, and takes every packet of some for a key frame.
        is_raw = bool(self._container.format.flags & Flags.no_timestamps.value)
        self.is_counted = is_raw
        while (packet := self.read()) is not None:
            stamp = stamp_of(packet)
            if stamp is None:
                if packet.size == 0:
                    break
                self.is_counted = True
                continue
            # the state of a decoder that a seek would leave behind
            if packet.has_sidedata("palette") or packet.has_sidedata("new_extradata"):
                self.is_seekable = False
            if timeline.is_second_field:
                if stamp in ends:
                    ends[stamp] += packet.duration or 0
                continue
            ascend, last = ascend and stamp > last, stamp
            if packet.is_keyframe:
                self._keys.add(stamp)
            if packet.is_keyframe or not entries:
                entries.append(EntryPoint(stamp, self.position - 1))
            if not packet.is_discard:  # cut away by an edit list, but needed by later frames
                if stamp in ends:  # times do not tell the frames apart
                    self.is_counted = True
                ends[stamp] = stamp + (packet.duration or 0)
        self._check_complete(packets=self.position - 1)
        errors, error = av.logging.get_last_error()
        if timeline.damage:
            self.file_damage = timeline.damage
        elif errors > errors_before and error is not None:
            self.file_damage = f"FFmpeg reads it with errors: {error[2].strip()}"
        if self.file_damage:
            note_damage(self.file_damage)
        # A format that has no times for reordered pictures, such as AVI: FFmpeg has made them up.
        has_order = timeline.is_mpeg or not (ascend or self._container.format.name == "avi")
        is_made_up = not has_order and self.decoder.has_b_frames > 0
        self.is_counted |= is_made_up
        self._can_seek = timeline.is_regular  # a seek forgets the corrections
        if timeline.is_regular:
            self._timeline = None  # nothing to correct
        self.start = entries[0] if entries else EntryPoint(0, 0)
        if self.is_counted:
            self.is_seekable = False
            ends = self._count(is_timed=bool(entries) and not is_raw, by_decoding_time=is_made_up)
        if not self.is_seekable:
            entries, self._can_seek = [self.start], False
        self._entries = sorted(entries, key=lambda entry: entry.stamp)
        is_late = ends and not self.is_counted and min(ends) < min(self._keys, default=math.inf)
        # Other formats begin with a key frame, unless that is damaged.
        if is_late and (self.start.stamp in self._keys or timeline.is_mpeg):
            self._drop_unseen(ends)
        if not ends:
            raise VideoReadError("its video stream has no frames")
        self.stamps = sorted(ends)
        self.begin = self._seconds(self.stamps[0])
        self._end = self._last_end(max(ends.values()))
        self.end = self._seconds(self._end)
        self.duration = self.end - self.begin
        if self.duration > 0:
            self.fps = len(self.stamps) / self.duration
        else:
            self.fps = float(self.stream.base_rate or 0)

    def _last_end(self, told: int) -> int:
        """When the last frame ends. A container may say nothing, or what cannot be: in a video of
        even spacing it lasts as long as the others."""
        if len(self.stamps) < 3 or not self.is_even:
            return told
        step = (self.stamps[-1] - self.stamps[0]) / (len(self.stamps) - 1)
        expected = self.stamps[-1] + round(step)
        return expected if abs(told - expected) > max(1.0, EVEN_SHARE * step) else told

    def _count(self, is_timed: bool, by_decoding_time: bool) -> dict[int, int]:
        """Decode all frames, in the order in which they are shown; gives the end of each by its
        begin. Without a time a frame follows the one before at the rate of the stream."""
        rate = self.decoder.framerate or self.stream.guessed_rate or DEFAULT_RATE
        if not is_timed:
            self.time_base = 1 / rate
        step = max(1, round(1 / (rate * self.time_base)))
        ends: dict[int, int] = {}
        following = None
        for frame in self._all_frames():
            stamp = None
            if is_timed:
                stamp = frame.dts if by_decoding_time else stamp_of(frame)
            if stamp is None or (following is not None and stamp <= following - step):
                stamp = following or 0
            following = ends[stamp] = stamp + step
        self._keys = set()
        return ends

    def _drop_unseen(self, ends: dict[int, int]) -> None:
        """Drop the frames at the start that no decoder can show, because what they are made from
        lies before the start: a recording that begins between two key frames."""
        first = next(self._all_frames(), None)
        stamp = None if first is None else stamp_of(first)
        if stamp is not None:
            for early in [begin for begin in ends if begin < stamp]:
                del ends[early]
        self.damage = None

    def _all_frames(self) -> Iterator[VideoFrame]:
        """What the decoder gives for the whole file."""
        self._open()
        self.decoder.flush_buffers()
        while (packet := self.read()) is not None:
            yield from self.decode(packet)

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
