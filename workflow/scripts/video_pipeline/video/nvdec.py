"""Decoding with NVDEC, the decoder on the GPU, through NVIDIA's PyNvVideoCodec.

The file is read as for the CPU (:mod:`video_pipeline.video.container`): the same frames are chosen,
and decoding starts at the same packets. Only the codec differs: packets go to the card with their
times, and pictures come back with them. On the card they become RGB by the arithmetic of FFmpeg's
swscale on x86, to the last bit, and are resized. Only then do they go to the host.

A video that NVDEC does not take, or would show differently, is refused (:class:`Unsupported`), and
the caller reads it with the CPU. CPU and card both decode the first picture, and the two must
agree.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, cast

import torch
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream
from torch.utils.dlpack import from_dlpack

from video_pipeline.video.bitstream import Bitstream, Unsupported, bitstream
from video_pipeline.video.container import Video
from video_pipeline.video.decode_pyav import ToRgb, orientation_of
from video_pipeline.video.demuxer import EntryPoint
from video_pipeline.video.display import Orientation, Shown
from video_pipeline.video.swscale import MATRICES, coefficients_of, nv12_to_rgb
from video_pipeline.video.timeline import stamp_of

TORCH_BYTES = 1 << 30
"""Memory of the card that torch may take in a process, to convert and resize pictures. One of
MAX_PIXELS needs 0.4 GiB."""

KEPT_BYTES = 256 << 20
"""Memory that torch may keep for the next video."""

MAX_PIXELS = 4096 * 2304
"""Pixels of the largest picture that is decoded here. NVDEC takes larger ones, but keeps about 25
pictures, and those of 8K would take more memory than the model can spare."""

MAX_DIFFERENCE = 8
"""The largest difference, in any pixel, between the first pictures of CPU and card. On x86 they are
equal; on other machines swscale rounds differently, by 3 at most."""


class Codec(NamedTuple):
    """A codec whose standard defines every bit of a picture (those of MPEG-2 and MPEG-4 do not), so
    that NVDEC decodes it like any other decoder.

    Attributes:
        name: Its name in PyNvVideoCodec's ``cudaVideoCodec``.
        least: The least width and height of a picture (NVIDIA's Video Decode support matrix).
        most: The greatest width and height.
    """

    name: str
    least: int
    most: int


CODECS = {
    "h264": Codec("H264", 64, 4096),
    "hevc": Codec("HEVC", 144, 8192),
    "vp9": Codec("VP9", 128, 8192),
    "av1": Codec("AV1", 128, 8192),
}
"""The codecs that NVDEC decodes, by FFmpeg's name."""

_CU_CTX_SCHED_BLOCKING_SYNC = 4  # From cuda.h.

PIXEL_FORMATS = ("yuv420p", "yuvj420p")


class NoCard(Exception):
    """NVDEC cannot be used here. The message says why."""


Picture = tuple[int, torch.Tensor]
"""The time of a picture, and the picture in NV12: uint8 (height x 3 / 2, width), on the card. It is
valid until the next call of its session."""


class Card:
    """The first GPU that this process sees. CUDA is initialised here."""

    def __init__(self) -> None:
        """Raises :class:`NoCard` if the card, the driver or the package is missing."""
        if not torch.cuda.is_available():
            built = "sees no GPU" if torch.version.cuda else "is built without CUDA"
            raise NoCard(f"torch {torch.__version__} {built}")
        try:
            import PyNvVideoCodec
        except ImportError as error:
            raise NoCard(f"PyNvVideoCodec cannot be imported ({_line(error)})") from error
        except Exception as error:  # There is no driver, or it is too old.
            raise NoCard(f"PyNvVideoCodec does not start: {_line(error)}") from error
        self._library = PyNvVideoCodec
        try:
            self.device = torch.device("cuda", 0)
            _wait_asleep()
            torch.backends.cuda.matmul.allow_tf32 = True  # Exact for the products of resize.py.
            total = torch.cuda.get_device_properties(self.device).total_memory
            share = min(1.0, TORCH_BYTES / total)
            torch.cuda.set_per_process_memory_fraction(share, self.device)
            torch.zeros(1, device=self.device)  # Makes the context that the decoder shares.
            self.open("h264")
        except Exception as error:
            raise NoCard(f"NVDEC does not start: {_line(error)}") from error

    def open(self, codec: str) -> Session:
        """A decoder for a codec of CODECS."""
        return Session(self._library, CODECS[codec].name)

    def tidy(self) -> None:
        """Free memory that the next video hardly needs."""
        if torch.cuda.memory_reserved(self.device) > KEPT_BYTES:
            torch.cuda.empty_cache()


def _wait_asleep() -> None:
    """Make this process sleep while it waits for the card: CUDA would spin on its core, which other
    decode processes need. This must come before the context exists; if it fails, waiting only
    costs more."""
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxSetFlags_v2(device, _CU_CTX_SCHED_BLOCKING_SYNC)


class Session:
    """A decoder of one codec: a ``PyNvDecoder``. It works on CUDA's default stream, like torch
    here, so that a picture is complete when torch reads it, and stays until then."""

    def __init__(self, library: Any, codec: str) -> None:
        self._library = library
        self._decoder = library.CreateDecoder(
            gpuid=0, codec=getattr(library.cudaVideoCodec, codec), usedevicememory=True
        )
        self._end = library.PacketData()
        self._end.decode_flag = int(library.VideoPacketFlag.ENDOFSTREAM)

    def feed(self, data: bytes, stamp: int) -> list[Picture]:
        """Decode a packet; return the pictures that come out."""
        packet = self._library.PacketData()
        packet.bsl_data = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        packet.bsl = len(data)
        packet.pts = stamp
        return self._decode(packet)

    def flush(self) -> list[Picture]:
        """Return the pictures that are held back. Decoding may begin again, at any packet that it
        can start from."""
        return self._decode(self._end)

    def _decode(self, packet: Any) -> list[Picture]:
        try:
            frames = self._decoder.Decode(packet)
        except self._library.PyNvVCExceptionUnsupported as error:
            raise Unsupported(_line(error)) from error
        for frame in frames:
            if frame.format != self._library.Pixel_Format.NV12:
                raise Unsupported(f"NVDEC gives {frame.format}")
        return [(frame.getPTS(), from_dlpack(frame)) for frame in frames]


class Nvdec:
    """Decodes videos on a card, one after the other."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._session: Session | None = None
        self._set_up: tuple[str, tuple[int, int], bytes] | None = None  # Of the session.

    def decode(self, video: Video, positions: Sequence[int]) -> Iterator[Shown]:
        """Yield the frames at ``positions``, which ascend, as they are shown; their pixels are on
        the card. Raises :class:`Unsupported` if the CPU has to read the video."""
        if reason := _refusal(video):
            raise Unsupported(reason)
        entry = video.entry_before(video.stamps[positions[0]])
        codec = video.decoder.codec.canonical_name
        stream = bitstream(codec, video.decoder.extradata)
        first = _decode_alone(video, entry)
        look = _Look.of(video, first)
        session = self._open(codec, (first.width, first.height), stream.identity)
        wanted = {video.stamps[position] for position in positions}
        pictures: deque[Picture] = deque()
        is_checked = False
        stamp: int | None = None
        frame: Shown | None = None
        for position in positions:
            expected = video.stamps[position]
            entry = video.entry_before(expected)
            if stamp is None or entry.ordinal > video.position:
                session.flush()
                pictures.clear()
                feed = _feed(session, video, entry, stream, wanted)
                stamp = None
            while stamp is None or stamp < expected:
                while not pictures:
                    pictures.extend(next(feed))
                stamp, picture = pictures.popleft()
                if not is_checked and stamp == stamp_of(first):
                    _check(look.show(picture), ToRgb(video)(first))
                    is_checked = True
                frame = look.show(picture) if stamp == expected else None
            if frame is None or not is_checked:
                raise Unsupported("NVDEC gives its frames different times")
            yield frame
        self._card.tidy()

    def forget(self) -> None:
        """Close the decoder that is kept for the next video."""
        self._session = self._set_up = None

    def _open(self, codec: str, size: tuple[int, int], identity: bytes | None) -> Session:
        """A decoder for a stream: that of the last stream, if both are set up in the same way. To
        make a decoder takes longer than to decode a short clip."""
        set_up = None if identity is None else (codec, size, identity)
        if self._session is None or set_up is None or set_up != self._set_up:
            self.forget()  # There is memory for only one decoder, so close the old one first.
            self._session = self._card.open(codec)
            self._set_up = set_up
        return self._session


def _feed(
    session: Session, video: Video, entry: EntryPoint, stream: Bitstream, wanted: set[int]
) -> Iterator[list[Picture]]:
    """Decode packet by packet from ``entry`` on. Leaves out pictures that are neither wanted nor
    needed for others."""
    video.go_to(entry)
    is_first = True
    while (packet := video.read()) is not None and packet.size:
        data, stamp = bytes(packet), stamp_of(packet)
        if stamp is None:
            raise Unsupported(_NO_TIMES)
        if is_first and not stream.is_entry(data):
            raise Unsupported("its key frames need other pictures")
        if is_first or stamp in wanted or stream.is_needed(data):
            header = stream.header if is_first else b""
            yield session.feed(header + stream.packet(data), stamp)
        is_first = False
    yield session.flush()
    raise Unsupported("NVDEC does not give all of its frames")


class _Look(NamedTuple):
    """How the pictures of a video are shown.

    Attributes:
        coefficients: Those of :func:`nv12_to_rgb`.
        aspect: Width of a shown pixel / its height.
    """

    coefficients: tuple[int, ...]
    orientation: Orientation
    aspect: Fraction

    @classmethod
    def of(cls, video: Video, frame: VideoFrame) -> _Look:
        """The look of ``frame``'s video. Raises :class:`Unsupported` if the CPU has to read it."""
        codec = CODECS[video.decoder.codec.canonical_name]
        orientation = orientation_of(frame)
        sides = (frame.width, frame.height)
        refusals = {
            f"pixels are {frame.format.name}": frame.format.name not in PIXEL_FORMATS,
            "its width or height is odd": any(side % 2 for side in sides),
            "its frames are too small for NVDEC": min(sides) < codec.least,
            "its frames are too large": max(sides) > codec.most
            or frame.width * frame.height > MAX_PIXELS,
            "it is interlaced": frame.interlaced_frame,
            "its colour space is not known": frame.colorspace not in MATRICES,
            "it is not shown in quarter turns": orientation.degrees,
        }
        for reason, applies in refusals.items():
            if applies:
                raise Unsupported(reason)
        is_full = frame.format.name == "yuvj420p" or frame.color_range == ColorRange.JPEG
        aspect = orientation.turn_aspect(video.pixel_aspect)
        return cls(coefficients_of(MATRICES[frame.colorspace], is_full), orientation, aspect)

    def show(self, picture: torch.Tensor) -> Shown:
        """Convert a picture in NV12 to what is shown."""
        pixels = nv12_to_rgb(picture, self.coefficients)
        if self.orientation.transposed:
            pixels = pixels.transpose(1, 2)
        turned = [2] * self.orientation.mirrored + [1] * self.orientation.upside_down
        return Shown(pixels.flip(turned).permute(1, 2, 0), self.aspect)


_NO_TIMES = "its packets do not say their times"


def _refusal(video: Video) -> str | None:
    """The reason why a video cannot be decoded here, if its packets tell one."""
    codec = video.decoder.codec.canonical_name
    if codec not in CODECS:
        return f"the codec is {codec}"
    if video.index.is_counted:
        return _NO_TIMES
    if not video.index.is_seekable:
        return "its parameters change"
    if video.index.damage:
        return "it is damaged"
    return None


def _decode_alone(video: Video, entry: EntryPoint) -> VideoFrame:
    """Decode the picture of one packet on the CPU: it tells its colours and its orientation. Raises
    :class:`Unsupported` if it needs other pictures."""
    video.go_to(entry)
    packet = video.read()
    assert packet is not None  # Each entry point is a packet of the file.
    # A copy is shown even if an edit list cuts the packet away.
    alone = cast("Packet[VideoStream]", Packet(bytes(packet)))
    alone.pts, alone.dts, alone.time_base = packet.pts, packet.dts, packet.time_base
    video.damage = None
    video.decoder.flush_buffers()
    frames = [*video.decode(alone), *video.decode(None)]
    video.decoder.flush_buffers()
    if video.damage or len(frames) != 1 or stamp_of(frames[0]) != entry.stamp:
        raise Unsupported("its first picture cannot be decoded by itself")
    return frames[0]


def _check(ours: Shown, theirs: Shown) -> None:
    """Raise :class:`Unsupported` if the first picture differs from that of the CPU."""
    if ours.pixels.shape == theirs.pixels.shape:
        reference = theirs.pixels.to(ours.pixels.device).int()
        if (ours.pixels.int() - reference).abs().max() <= MAX_DIFFERENCE:
            return
    raise Unsupported("NVDEC shows its first picture differently")


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
