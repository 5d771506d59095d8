"""Converts the packets of a video to the form that the GPU's decoder takes.

Section numbers are those of Rec. ITU-T H.264 (08/2021) and H.265 (08/2021), and of ISO/IEC
14496-15.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from video_pipeline.video.h264 import SLICES, SPS, FieldPairs, slice_type, units_by_length

_START = b"\0\0\0\1"

_I = 2  # slice_type modulo 5 (table 7-6)
_HEVC_SPS = 33  # nal_unit_type (table 7-1 of H.265)


class Unsupported(Exception):
    """A video that the CPU has to decode. The message says why, in words that fit all such
    videos, since each reason is logged once."""


class Bitstream:
    """A stream of VP9 or AV1, whose packets are fed as they are.

    Attributes:
        header: Bytes to feed before the first packet.
        identity: Streams with the same identity are set up in the same way. None: no other stream
            is set up in the same way.
    """

    def __init__(self, extradata: bytes) -> None:
        self.header = b""
        self.identity: bytes | None = extradata

    def packet(self, data: bytes) -> bytes:
        """Convert a packet of the file for the decoder. Raises :class:`Unsupported` if the CPU has
        to decode the video."""
        return data

    def is_needed(self, data: bytes) -> bool:
        """Whether other pictures may need the picture of a packet."""
        return True

    def is_entry(self, data: bytes) -> bool:
        """Whether the picture of a packet that the file marks as a key frame needs no other."""
        return True


class NalUnits(Bitstream):
    """A stream of H.264 or HEVC. The decoder takes units that begin with a start code (annex B of
    both), with the parameter sets among them. MP4, Matroska and FLV have lengths instead of start
    codes, and a box for the parameter sets."""

    def __init__(self, codec: str, extradata: bytes) -> None:
        """Read the parameter sets of ``h264`` or ``hevc`` from the ``avcC`` or ``hvcC`` box of the
        stream, whose format packets have too, or from units with start codes."""
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
        """An H.264 key frame may be a recovery point, after which pictures become whole slowly."""
        return not self._is_h264 or all(slice_type(unit) % 5 == _I for unit in self._slices(data))

    def _slices(self, data: bytes) -> list[bytes]:
        return [unit for unit in self._units(data) if unit[0] & 31 in SLICES]

    def _units(self, data: bytes) -> Iterable[bytes]:
        return units_by_length(data, self._length_bytes) if self._length_bytes else _split(data)

    def _learn(self, units: Iterable[bytes]) -> None:
        """Look at sequence parameter sets: NVDEC would scale pictures whose size changes to that of
        the first, and blend fields."""
        sequences = {unit for unit in units if self._is_sequence(unit)}
        if self._sequences and not sequences <= self._sequences:
            raise Unsupported("its parameters change")
        for unit in sequences - self._sequences:
            if self._is_h264 and FieldPairs(_START + unit).has_fields:
                raise Unsupported("it may be interlaced")
        self._sequences |= sequences

    def _is_sequence(self, unit: bytes) -> bool:
        if self._is_h264:
            return unit[0] & 31 == SPS
        return unit[0] >> 1 & 63 == _HEVC_SPS


def bitstream(codec: str, extradata: bytes | None) -> Bitstream:
    """The stream of a codec, by FFmpeg's name for it."""
    if codec in ("h264", "hevc"):
        return NalUnits(codec, extradata or b"")
    return Bitstream(extradata or b"")


def _join(units: Iterable[bytes]) -> bytes:
    return b"".join(_START + unit for unit in units)


def _split(data: bytes) -> Iterator[bytes]:
    """The units of data with start codes. There are none if it does not begin with one."""
    if data.startswith(b"\0\0") and data[:16].lstrip(b"\0").startswith(b"\1"):
        for unit in data.split(b"\0\0\1"):
            if unit := unit.rstrip(b"\0"):  # The zeros belong to the next start code.
                yield unit


def _take_sets(box: bytes, offset: int, count: int) -> tuple[list[bytes], int]:
    """``count`` parameter sets, each after its length of 2 bytes, and the offset after them."""
    sets = []
    for _ in range(count):
        start = offset + 2
        offset = start + int.from_bytes(box[offset:start])
        sets.append(box[start:offset])
    return sets, offset


def _of_avcc(box: bytes) -> tuple[int, list[bytes]]:
    """The number of bytes of a length, and the parameter sets (5.3.3.1 of ISO/IEC 14496-15)."""
    sequence_sets, offset = _take_sets(box, 6, box[5] & 31)
    picture_sets, _ = _take_sets(box, offset + 1, box[offset])
    return (box[4] & 3) + 1, sequence_sets + picture_sets


def _of_hvcc(box: bytes) -> tuple[int, list[bytes]]:
    """The number of bytes of a length, and the parameter sets (8.3.3.1 of ISO/IEC 14496-15)."""
    sets, offset = [], 23
    for _ in range(box[22]):  # Arrays, each with its kind of unit and their number.
        count = int.from_bytes(box[offset + 1 : offset + 3])
        array, offset = _take_sets(box, offset + 3, count)
        sets += array
    return (box[21] & 3) + 1, sets
