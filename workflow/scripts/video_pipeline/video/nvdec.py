"""Decoding with NVDEC, the decoder on the GPU, through NVIDIA's PyNvVideoCodec.

The file is read as for the CPU (:mod:`video_pipeline.video.container`): the same frames are chosen,
and decoding starts at the same packets. Only the codec is another one: packets go to the card with
their times, and pictures come back with them. There they become RGB by the arithmetic of FFmpeg's
swscale on x86, to the last bit, and are resized; only then do they go to the host.

What NVDEC does not take, or would show otherwise, is refused (:class:`Unsupported`), and the caller
reads it with the CPU. The picture that decoding starts with is decoded by both, so that nothing
that was overlooked passes for right.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import torch
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from video_pipeline.video.bitstream import Bitstream, Unsupported, bitstream
from video_pipeline.video.container import Video
from video_pipeline.video.decode_pyav import ToRgb, orientation_of
from video_pipeline.video.demuxer import EntryPoint
from video_pipeline.video.display import Orientation, Shown
from video_pipeline.video.timeline import stamp_of

__all__ = ["Card", "NoCard", "Nvdec", "Unsupported"]

TORCH_BYTES = 1 << 30
"""Memory of the card that torch may take in a process: pictures on their way to RGB and to their
size. One of MAX_PIXELS needs 0.4 GiB."""

KEPT_BYTES = 256 << 20
"""Memory that torch may keep for the next video."""

MAX_PIXELS = 4096 * 2304
"""Pixels of the largest picture that is decoded here. NVDEC takes larger ones, but keeps about 25
of them, and those of 8K would take more memory than the model can spare."""

MAX_DIFFERENCE = 8
"""Between the first pictures of CPU and card, in any pixel. On x86 they are equal; other machines
have a swscale that rounds otherwise, by 3 at most."""


class Codec(NamedTuple):
    """A codec that NVDEC decodes, to the last bit as any other decoder: its standard leaves no
    choice, as those of MPEG-2 and MPEG-4 do.

    Attributes:
        name: In PyNvVideoCodec's ``cudaVideoCodec``.
        least: Width and height of a picture, at least (NVIDIA's Video Decode support matrix).
        most: Likewise, at most.
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
"""By FFmpeg's name."""

_CU_CTX_SCHED_BLOCKING_SYNC = 4  # of cuda.h

PIXEL_FORMATS = ("yuv420p", "yuvj420p")

BT601 = (104597, 132201, 25675, 53279)

MATRICES = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    2: BT601,  # not told
    4: (104448, 132798, 24759, 53109),  # FCC
    5: BT601,
    6: BT601,
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}
"""How much of V is in red, of U in blue, and of U and of V is taken from green, as 65536ths, by
FFmpeg's number of the colour space: swscale's ``ff_yuv2rgb_coeffs``."""


class NoCard(Exception):
    """NVDEC cannot be used here. The message says why."""


class Session(Protocol):
    """A decoder of one codec. Pictures are uint8 (height x 3 / 2, width) in NV12, and valid until
    the next call."""

    def feed(self, data: bytes, stamp: int) -> list[tuple[int, torch.Tensor]]:
        """The pictures, with their times, that come out when a packet goes in."""

    def flush(self) -> list[tuple[int, torch.Tensor]]:
        """Those that are held back. Decoding may begin again, at any packet that it can start
        from."""


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
        except Exception as error:  # no driver, or one that is too old
            raise NoCard(f"PyNvVideoCodec does not start: {_line(error)}") from error
        self._library = PyNvVideoCodec
        try:
            self.device = torch.device("cuda", 0)
            _wait_asleep()
            torch.backends.cuda.matmul.allow_tf32 = True  # exact for what is resized here
            total = torch.cuda.get_device_properties(self.device).total_memory
            share = min(1.0, TORCH_BYTES / total)
            torch.cuda.set_per_process_memory_fraction(share, self.device)
            torch.zeros(1, device=self.device)  # the context that the decoder shares
            self.open("h264")
        except Exception as error:
            raise NoCard(f"NVDEC does not start: {_line(error)}") from error

    def open(self, codec: str) -> Session:
        """A decoder for a codec of CODECS."""
        return _NvSession(self._library, CODECS[codec].name)

    def tidy(self) -> None:
        """Give memory back that the next video hardly needs."""
        if torch.cuda.memory_reserved(self.device) > KEPT_BYTES:
            torch.cuda.empty_cache()


def _wait_asleep() -> None:
    """Have this process sleep while it waits for the card. CUDA would spin on its core, which other
    decode processes need. Takes effect before the context exists; without it nothing is wrong."""
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    if driver.cuInit(0) == 0 and driver.cuDeviceGet(ctypes.byref(device), 0) == 0:
        driver.cuDevicePrimaryCtxSetFlags_v2(device, _CU_CTX_SCHED_BLOCKING_SYNC)


class _NvSession:
    """A ``PyNvDecoder``. It works on CUDA's default stream, like torch here, so that a picture is
    there when torch reads it, and is read before the decoder overwrites it."""

    def __init__(self, library: Any, codec: str) -> None:
        self._library = library
        self._decoder = library.CreateDecoder(
            gpuid=0, codec=getattr(library.cudaVideoCodec, codec), usedevicememory=True
        )
        self._end = library.PacketData()
        self._end.decode_flag = int(library.VideoPacketFlag.ENDOFSTREAM)

    def feed(self, data: bytes, stamp: int) -> list[tuple[int, torch.Tensor]]:
        packet = self._library.PacketData()
        packet.bsl_data = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value
        packet.bsl = len(data)
        packet.pts = stamp
        return self._decode(packet)

    def flush(self) -> list[tuple[int, torch.Tensor]]:
        return self._decode(self._end)

    def _decode(self, packet: Any) -> list[tuple[int, torch.Tensor]]:
        try:
            frames = self._decoder.Decode(packet)
        except self._library.PyNvVCExceptionUnsupported as error:
            raise Unsupported(_line(error)) from error
        for frame in frames:
            if frame.format != self._library.Pixel_Format.NV12:
                raise Unsupported(f"NVDEC gives {frame.format}")
        return [(frame.getPTS(), torch.from_dlpack(frame)) for frame in frames]


class Nvdec:
    """Decodes videos on a card, one after the other."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._session: Session | None = None
        self._set_up: tuple | None = None  # what the session was opened for

    def decode(self, video: Video, positions: Sequence[int]) -> Iterator[Shown]:
        """The frames at ``positions``, in ascending order, as they are shown; their pixels are on
        the card.

        Raises:
            Unsupported: the CPU has to read it.
        """
        if reason := _refusal(video):
            raise Unsupported(reason)
        entry = video.entry_before(video.stamps[positions[0]])
        codec = video.decoder.codec.canonical_name
        stream = bitstream(codec, video.decoder.extradata)
        first = _decode_alone(video, entry)
        look = _Look.of(video, first)
        self._open(codec, (first.width, first.height), stream.identity)
        wanted = {video.stamps[position] for position in positions}
        pictures: deque[tuple[int, torch.Tensor]] = deque()
        is_checked, stamp, frame = False, None, None
        for position in positions:
            expected = video.stamps[position]
            entry = video.entry_before(expected)
            if stamp is None or entry.ordinal > video.position:
                self._session.flush()
                pictures.clear()
                feed = self._feed(video, entry, stream, wanted)
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
                raise Unsupported("NVDEC gives its frames other times")
            yield frame
        self._card.tidy()

    def forget(self) -> None:
        """Close the decoder that is kept for the next video."""
        self._session = self._set_up = None

    def _open(self, codec: str, size: tuple[int, int], identity: bytes | None) -> None:
        """Have a decoder for a stream; that of the last one, where both are set up in the same way:
        to make one takes longer than a short clip."""
        set_up = None if identity is None else (codec, size, identity)
        if self._session is None or set_up is None or set_up != self._set_up:
            self.forget()  # first, so that there is memory for one only
            self._session = self._card.open(codec)
            self._set_up = set_up

    def _feed(
        self, video: Video, entry: EntryPoint, stream: Bitstream, wanted: set[int]
    ) -> Iterator[list[tuple[int, torch.Tensor]]]:
        """What comes out, packet by packet, from ``entry`` on. Pictures that are not wanted, and
        that no other is made from, stay out."""
        video.go_to(entry)
        is_first = True
        while (packet := video.read()) is not None and packet.size:
            data, stamp = bytes(packet), stamp_of(packet)
            if is_first and not stream.is_entry(data):
                raise Unsupported("its key frames need other pictures")
            if is_first or stamp in wanted or stream.is_needed(data):
                header = stream.header if is_first else b""
                yield self._session.feed(header + stream.packet(data), stamp)
            is_first = False
        yield self._session.flush()
        raise Unsupported("NVDEC does not give all of its frames")


class _Look(NamedTuple):
    """How the pictures of a video become what is shown.

    Attributes:
        colours: Numbers of swscale's: see :meth:`show`.
        orientation: Which way up.
        aspect: Width of a shown pixel / its height.
    """

    colours: tuple[int, ...]
    orientation: Orientation
    aspect: Fraction

    @classmethod
    def of(cls, video: Video, frame: VideoFrame) -> _Look:
        """That of a video with ``frame``. Raises :class:`Unsupported`."""
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
        aspect = ToRgb(video).aspect(orientation)
        return cls(_swscale_numbers(MATRICES[frame.colorspace], is_full), orientation, aspect)

    def show(self, picture: torch.Tensor) -> Shown:
        """A picture in NV12 as it is shown.

        The arithmetic is that of swscale's ``yuv_2_rgb.asm``: products of 16 bits of which the
        upper half is kept, and a colour for each 2 x 2 pixels.
        """
        luma, black, v_red, u_blue, u_green, v_green = self.colours
        rows, width = picture.shape
        height = rows // 3 * 2
        brightness = (picture[:height].int() * 8 - black) * luma >> 16
        u, v = ((picture[height:].int() - 128) * 8).view(height // 2, width // 2, 2).unbind(-1)
        green = (u * u_green >> 16) + (v * v_green >> 16)
        colour = torch.stack((v * v_red >> 16, green, u * u_blue >> 16))
        pixels = brightness.view(height // 2, 2, width // 2, 2) + colour[:, :, None, :, None]
        pixels = pixels.clamp_(0, 255).to(torch.uint8).view(3, height, width)
        if self.orientation.transposed:
            pixels = pixels.transpose(1, 2)
        turned = [2] * self.orientation.mirrored + [1] * self.orientation.upside_down
        return Shown(pixels.flip(turned).permute(1, 2, 0), self.aspect)


def _swscale_numbers(matrix: Sequence[int], is_full: bool) -> tuple[int, ...]:
    """``yCoeff``, ``yOffset``, ``vrCoeff``, ``ubCoeff``, ``ugCoeff`` and ``vgCoeff`` of swscale's
    ``ff_yuv2rgb_c_init_tables``: 8192ths, but for the offset, which is in eighths."""
    v_red, u_blue, u_green, v_green = matrix
    colours = [v_red, u_blue, -u_green, -v_green]
    luma, black = 1 << 16, 0
    if is_full:
        colours = [int(colour * 224 / 255) for colour in colours]
    else:
        luma, black = luma * 255 // 219, 16
    luma, *colours = [(number + 4) >> 3 for number in (luma, *colours)]
    return luma, black * 8, *colours


def _refusal(video: Video) -> str | None:
    """Why a video cannot be decoded here, as far as its packets tell."""
    codec = video.decoder.codec.canonical_name
    if codec not in CODECS:
        return f"the codec is {codec}"
    if video.is_counted:
        return "its packets do not say their times"
    if not video.is_seekable:
        return "its parameters change on the way"
    if video.file_damage:
        return "it is damaged"
    return None


def _decode_alone(video: Video, entry: EntryPoint) -> VideoFrame:
    """The picture of one packet, decoded on the CPU: it tells its colours and which way up it is.

    Raises:
        Unsupported: it needs others.
    """
    video.go_to(entry)
    packet = video.read()
    alone = Packet(bytes(packet))  # shown, even if an edit list cuts it away
    alone.pts, alone.dts, alone.time_base = packet.pts, packet.dts, packet.time_base
    video.damage = None
    video.decoder.flush_buffers()
    frames = [*video.decode(alone), *video.decode(None)]
    video.decoder.flush_buffers()
    if video.damage or len(frames) != 1 or stamp_of(frames[0]) != entry.stamp:
        raise Unsupported("its first picture cannot be decoded by itself")
    return frames[0]


def _check(ours: Shown, theirs: Shown) -> None:
    """Compare the first picture with that of the CPU reader."""
    if ours.pixels.shape == theirs.pixels.shape:
        reference = theirs.pixels.to(ours.pixels.device).int()
        if (ours.pixels.int() - reference).abs().max() <= MAX_DIFFERENCE:
            return
    raise Unsupported("NVDEC shows its first picture otherwise")


def _line(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
