"""The packets of a video in the form that the GPU's decoder takes.

Section numbers are those of Rec. ITU-T H.264 (08/2021) and H.265 (08/2021), and of ISO/IEC
14496-15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from video_pipeline.video.h264 import FieldPairs, slice_type

_START = b"\0\0\0\1"

_H264_SLICES, _H264_SPS = (1, 5), 7  # nal_unit_type, table 7-1
_I = 2  # slice_type modulo 5, table 7-6
_HEVC_SPS = 33  # nal_unit_type, table 7-1 of H.265


class Unsupported(Exception):
    """A video that is left to the CPU. The message says why, in words that fit all such videos."""


class Bitstream:
    """VP9, AV1: packets are fed as they are.

    Attributes:
        header: What decoding begins with, before the first packet.
        identity: Two streams with the same, which is not None, are set up in the same way.
    """

    def __init__(self, extradata: bytes) -> None:
        self.header = b""
        self.identity: bytes | None = extradata

    def packet(self, data: bytes) -> bytes:
        """A packet of the file as the decoder takes it.

        Raises:
            Unsupported: something in it is left to the CPU.
        """
        return data

    def is_needed(self, data: bytes) -> bool:
        """Whether another picture may be made from that of a packet of the file."""
        return True

    def is_entry(self, data: bytes) -> bool:
        """Whether the picture of a packet that the file marks as a key frame needs no other."""
        return True


class NalUnits(Bitstream):
    """H.264 and HEVC: units begin with a start code (annex B of both), and the parameter sets come
    with them. MP4, Matroska and FLV have lengths instead, and the sets in a box of their own."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        """Args:
        codec: ``h264`` or ``hevc``.
        extradata: of the stream: an ``avcC`` or ``hvcC`` box (packets are in its format), or units
            with start codes.
        """
        self._is_h264 = codec == "h264"
        self._length_bytes = 0
        units = list(_split(extradata))
        if extradata and not units:
            boxed = _of_avcc if self._is_h264 else _of_hvcc
            self._length_bytes, units = boxed(extradata)
        self.header = _join(units)
        self.identity = self.header or None
        self._sequences: set[bytes] = set()
        self._learn(units)

    def packet(self, data: bytes) -> bytes:
        units = list(self._units(data))
        self._learn(units)
        return _join(units) if self._length_bytes else data

    def is_needed(self, data: bytes) -> bool:
        if not self._is_h264:
            return True
        slices = self._slices(data)
        return not slices or any(unit[0] & 0x60 for unit in slices)  # nal_ref_idc, 7.4.1

    def is_entry(self, data: bytes) -> bool:
        """H.264 may have a point from which on pictures become whole by and by."""
        return not self._is_h264 or all(slice_type(unit) % 5 == _I for unit in self._slices(data))

    def _slices(self, data: bytes) -> list[bytes]:
        return [unit for unit in self._units(data) if unit[0] & 31 in _H264_SLICES]

    def _units(self, data: bytes) -> Iterable[bytes]:
        return _by_length(data, self._length_bytes) if self._length_bytes else _split(data)

    def _learn(self, units: Iterable[bytes]) -> None:
        """Look at sequence parameter sets: NVDEC would scale pictures whose size changes to that of
        the first, and blend fields."""
        found = {unit for unit in units if self._is_sequence(unit)}
        if self._sequences and not found <= self._sequences:
            raise Unsupported("its parameters change on the way")
        for unit in found - self._sequences:
            if self._is_h264 and FieldPairs(_START + unit).has_fields:
                raise Unsupported("it may be interlaced")
        self._sequences |= found

    def _is_sequence(self, unit: bytes) -> bool:
        if self._is_h264:
            return unit[0] & 31 == _H264_SPS
        return unit[0] >> 1 & 63 == _HEVC_SPS


def bitstream(codec: str, extradata: bytes | None) -> Bitstream:
    """The stream of a codec, by FFmpeg's name of it."""
    if codec in ("h264", "hevc"):
        return NalUnits(codec, extradata or b"")
    return Bitstream(extradata or b"")


def _join(units: Iterable[bytes]) -> bytes:
    return b"".join(_START + unit for unit in units)


def _split(data: bytes) -> Iterator[bytes]:
    """The units of data with start codes; none where there is no start code at its begin."""
    if data.startswith(b"\0\0") and data[:16].lstrip(b"\0").startswith(b"\1"):
        for unit in data.split(b"\0\0\1"):
            if unit := unit.rstrip(b"\0"):  # zeros that belong to the next start code
                yield unit


def _by_length(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of data in which each follows its length."""
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes])
        at += length_bytes
        if size:
            yield data[at : at + size]
        at += size


def _of_avcc(box: bytes) -> tuple[int, list[bytes]]:
    """Bytes of a length, and the parameter sets (5.3.3.1 of ISO/IEC 14496-15)."""
    sets, at = [], 5
    for mask in (31, 255):  # sequence, then picture parameter sets
        count, at = box[at] & mask, at + 1
        for _ in range(count):
            size, at = int.from_bytes(box[at : at + 2]), at + 2
            sets.append(box[at : at + size])
            at += size
    return (box[4] & 3) + 1, sets


def _of_hvcc(box: bytes) -> tuple[int, list[bytes]]:
    """Bytes of a length, and the parameter sets (8.3.3.1 of ISO/IEC 14496-15)."""
    sets, at = [], 23
    for _ in range(box[22]):
        count, at = int.from_bytes(box[at + 1 : at + 3]), at + 3
        for _ in range(count):
            size, at = int.from_bytes(box[at : at + 2]), at + 2
            sets.append(box[at : at + size])
            at += size
    return (box[21] & 3) + 1, sets
