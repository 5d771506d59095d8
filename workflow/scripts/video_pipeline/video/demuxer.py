"""The packets of a video file: opening it, and reading from any point on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, Self, cast

import av
from av.container.input import InputContainer
from av.error import ArgumentError, FFmpegError, InvalidDataError
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_pipeline.storage.blobs import Blob, BlobFile
from video_pipeline.storage.opening import local_path, open_blob
from video_pipeline.video.access import MediaFile
from video_pipeline.video.display import pixel_aspect
from video_pipeline.video.errors import VideoReadError
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
"""FFmpeg's names of the formats that are read: all that hold a video in one file. Formats that open
other files or addresses (hls, dash, concat, image2, sdp, vobsub, mlv, ...) are left out, because a
file of any name may have one; so are sound, subtitles, single pictures and devices."""

_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}


def explain(error: FFmpegError) -> str:
    """The last line of FFmpeg's log, if there is one, and the name of the exception, such as
    ``moov atom not found (InvalidDataError)``."""
    return f"{_log_line(error) or error.strerror} ({type(error).__name__})"


def _log_line(error: FFmpegError) -> str:
    log: Any = error.log  # PyAV's stub has another type: this is (level, name, message) or None.
    return log[2].strip() if log else ""


def packets_of(container: InputContainer, stream: Stream) -> Iterator[Packet[Any]]:
    """The packets of one stream; the others are passed over. FFmpeg stops at every 64 kB in an MPEG
    transport stream that hold no packet, and goes on when it is asked again, as ffmpeg does."""
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    while True:
        with suppress(BlockingIOError):
            return (yield from container.demux(stream))


@dataclass(frozen=True)
class EntryPoint:
    """A packet that decoding can start from.

    Attributes:
        stamp: Its time in units of the stream's time base.
        ordinal: Number of packets of the stream that come before it in the file.
    """

    stamp: int
    ordinal: int


class Demuxer:
    """The packets of the best video stream of a file, and a decoder for them.

    Attributes:
        num_bytes: Size of the file.
        container: The open file.
        stream: The best video stream.
        decoder: Its codec context: one thread.
        timeline: Corrects the times of packets; None if they need no correction.
        position: Ordinal of the packet that :meth:`read` gives next.
        num_frames: Frames of the stream; 0 until they are counted.
        damage: The decoder's message when it refused a packet or gave a damaged frame, else None.
        can_seek: Whether FFmpeg's seek leads to the right packet; False once it did not.
    """

    container: InputContainer
    stream: VideoStream
    decoder: VideoCodecContext

    def __init__(self, uri: str, *, in_parts: bool = False) -> None:
        """Open the video at an address.

        Args:
            uri: See :func:`video_pipeline.storage.opening.open_blob`.
            in_parts: Fetch only the parts of a remote video that are read, each time again.

        Raises:
            VideoReadError: There is no such file, or it holds no video that can be decoded.
        """
        self._file: MediaFile | None = None
        self._blob: Blob | None = None
        if in_parts and local_path(uri) is None:
            self._blob = open_blob(uri)
            self.num_bytes = self._blob.size
        else:
            self._file = MediaFile(uri)
            self.num_bytes = os.path.getsize(self._file.path)
        self._opened = ExitStack()  # Holds the container.
        self.timeline: Timeline | None = None
        self.num_frames = 0
        self.damage: str | None = None
        self.can_seek = True
        with self._opening():
            self._open()
            self._prepare_decoder()
            self.timeline = Timeline(self.stream)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Close the file if the block fails; FFmpeg's errors become a :class:`VideoReadError`."""
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, FFmpegError):
                raise VideoReadError(explain(error)) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()
        if self._file is not None:
            self._file.close()

    @property
    def pixel_aspect(self) -> Fraction:
        """Width / height of a stored pixel."""
        # The container's ratio goes before that of the stream, and the decoder may know more.
        return pixel_aspect(self.stream.sample_aspect_ratio or self.decoder.sample_aspect_ratio)

    def open_container(self) -> InputContainer:
        """Open the file, for one of its streams; a copy is not downloaded again. Raises
        :class:`av.error.FFmpegError`."""
        # FFmpeg knows more protocols than file:, so the name alone must not choose one.
        file: Any = f"file:{self._file.path}" if self._file else BlobFile(cast("Blob", self._blob))
        opened: InputContainer = av.open(file, "r", options=_OPTIONS, metadata_errors="ignore")
        return opened

    def _open(self) -> None:
        """Open the file, at its first packet."""
        self._opened.close()
        try:
            container = self.open_container()
        except (ArgumentError, InvalidDataError) as error:
            if self._file is not None and (reason := why_no_video(self._file.path)):
                raise VideoReadError(reason) from error
            line = _log_line(error)
            if isinstance(error, ArgumentError) and (not line or "whitelist" in line):
                raise VideoReadError("not a file of a known video format") from error
            raise
        self.container = self._opened.enter_context(container)
        stream = self.container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            sound = self.container.streams.best("audio") is not None
            raise VideoReadError("holds sound only, no video" if sound else "no video stream")
        self.stream = stream
        self._packets = packets_of(self.container, stream)
        self.position = 0
        if self.timeline is not None:
            self.timeline = Timeline(stream)

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
        # The header of the file may say less than the stream itself.
        self.decoder.options = {"max_pixels": str(MAX_FRAME_PIXELS)}

    def go_to(self, entry: EntryPoint) -> None:
        """Make ``entry`` the packet that :meth:`read` gives next."""
        if not self._seek(entry):
            if self.position > entry.ordinal:
                self._open()
            while self.position < entry.ordinal:
                self.read()
        self.position = entry.ordinal

    def _seek(self, entry: EntryPoint) -> bool:
        """Let FFmpeg seek. Returns False, from then on, if that led to another packet, as in MPEG
        transport and program streams."""
        if not self.can_seek:
            return False
        try:
            self.container.seek(entry.stamp, stream=self.stream)
            packets = packets_of(self.container, self.stream)
            first = next(packets)
        except FFmpegError:
            self.can_seek = False
        else:
            self.can_seek = first.is_keyframe and stamp_of(first) == entry.stamp
        if not self.can_seek:
            self._open()
            return False
        self._packets = chain([first], packets)
        return True

    def read(self) -> Packet[VideoStream] | None:
        """The next packet of the stream, in the order of the file. The last one is empty: for it
        the decoder gives the frames that it holds back. After that, None."""
        self.position += 1
        packet = next(self._packets, None)
        if packet is not None and self.timeline is not None:
            self.timeline.correct(packet)
        return packet

    def decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """The frames that the decoder gives for ``packet``; for None, those that it holds back. A
        packet that it refuses gives none. :attr:`damage` notes this, and an incomplete frame."""
        try:
            frames = self.decoder.decode(packet)
        except FFmpegError as error:
            self._note_damage(explain(error))
            return []
        if any(frame.is_corrupt for frame in frames):
            self._note_damage("a part of the picture is lost")
        return frames

    def decode_all(self) -> Iterator[VideoFrame]:
        """All frames that the decoder gives for the file, from its first packet on."""
        self._open()
        self.decoder.flush_buffers()
        while (packet := self.read()) is not None:
            yield from self.decode(packet)

    def _note_damage(self, reason: str) -> None:
        if self.damage is None:
            self.damage = f"damaged near frame {self.position} of {self.num_frames}: {reason}"
