"""Clips whose pictures show their own number, so that a test can say which ones the model saw."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE = 128  # pixels


def picture(number: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    """A grey picture, uint8 (height, width), of 4 x 4 blocks: the bits of ``number``."""
    bits = np.array([number >> 15 - place & 1 for place in range(16)], np.uint8).reshape(4, 4)
    blocks = np.where(bits, 220, 35).astype(np.uint8)
    return blocks.repeat(height // 4, axis=0).repeat(width // 4, axis=1)


def number_of(image: np.ndarray) -> int:
    """The number that a picture (height, width, 3) of any size shows."""
    grey = np.asarray(image, float).mean(-1)
    height, width = grey.shape
    number = 0
    for place in range(16):
        row, column = divmod(place, 4)
        top, left = row * height // 4, column * width // 4
        block = grey[top : top + height // 4, left : left + width // 4]
        inner = block[height // 16 : -(height // 16), width // 16 : -(width // 16)]
        number = number * 2 + int(inner.mean() > 128)
    return number


def write_numbered(
    path: Path,
    count: int,
    *,
    first: int = 0,
    codec: str = "libx264",
    rate: int | Fraction = 25,
    times: Sequence[float] | None = None,
    format: str | None = None,
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (SIDE, SIDE),
    options: dict[str, str] | None = None,
) -> Path:
    """Encode the pictures ``first``, ``first + 1``, ...; ``times`` are the seconds of each."""
    quick = {"preset": "veryfast", "crf": "18"} if codec == "libx264" else {}
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options=quick | (options or {}))
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for place in range(count):
            frame = av.VideoFrame.from_ndarray(picture(first + place, *size), "gray")
            if times is not None:
                frame.pts, frame.time_base = round(times[place] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_fields(path: Path, count: int, *, packets: str = "pair", format: str = "mpegts") -> Path:
    """Numbered pictures as H.264 of which each field is coded as a picture of its own, as
    camcorders do; no encoder of FFmpeg makes that, so the macroblocks hold plain samples (I_PCM).

    ``packets``: ``pair`` puts both fields of a frame into one packet, ``each`` gives each its own
    packet and time.
    """
    raw = path.with_suffix(".template.h264")
    raw.write_bytes(b"".join(_fields(0)))
    tick = Fraction(1, 50)
    with av.open(str(raw), format="h264") as old, av.open(str(path), "w", format=format) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        stream.time_base = tick
        for place in range(count):
            top, bottom = _fields(place)
            parts = [top + bottom] if packets == "pair" else [top, bottom]
            for half, data in enumerate(parts):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, tick
                packet.pts = packet.dts = 2 * place + half
                packet.is_keyframe = half == 0
                new.mux(packet)
    raw.unlink()
    return path


def write_raw_fields(path: Path, count: int) -> Path:
    """The same as a raw stream, without any times."""
    path.write_bytes(b"".join(data for place in range(count) for data in _fields(place)))
    return path


class _Bits:
    """Writes a NAL unit of H.264 bit by bit (Rec. ITU-T H.264, 7.2 and 9.1)."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def put(self, count: int, value: int) -> _Bits:
        self._bits += [value >> count - 1 - place & 1 for place in range(count)]
        return self

    def numbers(self, *values: int) -> _Bits:
        """Exp-Golomb codes."""
        for value in values:
            size = (value + 1).bit_length()
            self.put(size - 1, 0).put(size, value + 1)
        return self

    def align(self) -> _Bits:
        return self.put(-len(self._bits) % 8, 0)

    def samples(self, block: np.ndarray) -> _Bits:
        self._bits += np.unpackbits(block.reshape(-1)).tolist()
        return self

    def unit(self, header: int) -> bytes:
        self.put(1, 1).align()
        data, unit, zeros = np.packbits(np.array(self._bits, np.uint8)).tobytes(), bytearray(), 0
        for byte in data:
            if zeros >= 2 and byte <= 3:  # emulation prevention
                unit.append(3)
                zeros = 0
            unit.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([header]) + bytes(unit)


def _fields(number: int) -> tuple[bytes, bytes]:
    """The access units of both fields of a picture."""
    delimiter = b"\0\0\0\1\x09\x10"
    luma = picture(number)
    top, bottom = luma[0::2], luma[1::2]
    parameters = _sequence_parameters() + _picture_parameters()
    return (
        delimiter + parameters + _field(top, number, is_bottom=False),
        delimiter + _field(bottom, number, is_bottom=True),
    )


def _sequence_parameters() -> bytes:
    bits = _Bits().put(8, 77).put(8, 0).put(8, 30)  # Main profile, level 3
    bits.numbers(0, 0, 0, 4, 1).put(1, 0)  # 4 bits of frame_num, 8 of order, one reference
    bits.numbers(SIDE // 16 - 1, SIDE // 32 - 1).put(4, 0b0010)  # not only frames
    bits.put(1, 1).put(5, 0b00001).put(32, 1).put(32, 50).put(5, 0b10000)  # 25 frames a second
    return bits.unit(0x67)


def _picture_parameters() -> bytes:
    bits = _Bits().numbers(0, 0).put(2, 0).numbers(0, 0, 0).put(3, 0)
    return bits.numbers(0, 0, 0).put(3, 0).unit(0x68)


def _field(luma: np.ndarray, number: int, *, is_bottom: bool) -> bytes:
    bits = _Bits().numbers(0, 7, 0).put(4, 0).put(1, 1).put(1, is_bottom)
    if not is_bottom:
        bits.numbers(number % 2)  # idr_pic_id
    bits.put(8, is_bottom).put(1 if is_bottom else 2, 0).numbers(0)
    grey = np.full((8, 8), 128, np.uint8)
    for top in range(0, luma.shape[0], 16):
        for left in range(0, luma.shape[1], 16):
            block = np.ascontiguousarray(luma[top : top + 16, left : left + 16])
            bits.numbers(25).align().samples(block).samples(grey).samples(grey)
    return bits.unit(0x61 if is_bottom else 0x65)
