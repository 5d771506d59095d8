"""Finds the packets of an H.264 stream that hold the second field of a frame.

An interlaced H.264 stream may code the two fields of a frame as two pictures. MPEG streams, and
files that were copied from them, carry each in a packet of its own; the decoder makes one frame of
both. Section numbers are those of Rec. ITU-T H.264 (08/2021).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from video_pipeline.video.bits import Bits

SLICES, SPS = (1, 5), 7  # Numbers of nal_unit_type, 5 in an IDR picture (table 7-1).
_IDR = 5
_HEADER_BYTES = 512
"""Bytes of a NAL unit that are looked at: a sequence parameter set with scaling lists is shorter,
and only the start of a slice's header is read."""

# Numbers of profile_idc whose parameter sets hold a chroma format (7.3.2.1.1).
_HIGH_PROFILES = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


class _Sequence(NamedTuple):
    """The fields of a sequence parameter set that slice headers depend on."""

    frame_num_bits: int
    has_colour_planes: bool
    has_fields: bool


class _Field(NamedTuple):
    frame_num: int
    is_bottom: bool


class FieldPairs:
    """Looks at the packets of an H.264 stream in their order, and tells second fields."""

    def __init__(self, extradata: bytes) -> None:
        """Read the parameter sets from the ``avcC`` box of the stream, whose format packets have
        too, or from NAL units with start codes."""
        self._length_bytes = 0
        self._sequence: _Sequence | None = None
        self._first: _Field | None = None
        if extradata[:1] == b"\1":  # avcC, section 5.3.3.1 of ISO/IEC 14496-15
            self._length_bytes = (extradata[4] & 3) + 1
            if extradata[5] & 31:
                self._learn(extradata[8 : 8 + int.from_bytes(extradata[6:8])])
        else:
            self.is_second(extradata)

    @property
    def may_come(self) -> bool:
        """Whether a later packet may hold a field. Packets with start codes may change this."""
        return not self._length_bytes or self._sequence is None or self._sequence.has_fields

    @property
    def has_fields(self) -> bool:
        """Whether the last parameter set allows pictures that are fields."""
        return self._sequence is not None and self._sequence.has_fields

    def is_second(self, packet: bytes) -> bool:
        """Whether ``packet`` holds the second field of the frame that the last packet began."""
        first, self._first = self._first, None
        try:
            for unit in unit_starts(packet, self._length_bytes):
                kind = unit[0] & 31
                if kind == SPS:
                    self._learn(unit)
                elif kind in SLICES:
                    field = self._field(unit)
                    is_second = (
                        first is not None
                        and field is not None
                        and kind != _IDR
                        and field.frame_num == first.frame_num
                        and field.is_bottom != first.is_bottom
                    )
                    self._first = None if is_second else field
                    return is_second
        except IndexError:  # A damaged unit ends too early.
            pass
        return False

    def _learn(self, unit: bytes) -> None:
        """Read a sequence parameter set (7.3.2.1.1)."""
        bits = Bits.of_unit(unit[1:])
        profile = bits.take(8)
        bits.take(16)  # Constraint flags and level.
        bits.exp_golomb()
        has_colour_planes = False
        if profile in _HIGH_PROFILES:
            chroma_format = bits.exp_golomb()
            if chroma_format == 3:
                has_colour_planes = bool(bits.take(1))
            bits.exp_golomb()
            bits.exp_golomb()
            bits.take(1)
            if bits.take(1):
                for index in range(8 if chroma_format != 3 else 12):
                    if bits.take(1):
                        bits.skip_scaling_list(16 if index < 6 else 64)
        frame_num_bits = bits.exp_golomb() + 4
        order_type = bits.exp_golomb()
        if order_type == 0:
            bits.exp_golomb()
        elif order_type == 1:
            bits.take(1)
            bits.exp_golomb()
            bits.exp_golomb()
            for _ in range(bits.exp_golomb()):
                bits.exp_golomb()
        bits.exp_golomb()
        bits.take(1)
        bits.exp_golomb()
        bits.exp_golomb()
        self._sequence = _Sequence(frame_num_bits, has_colour_planes, not bits.take(1))

    def _field(self, unit: bytes) -> _Field | None:
        """The field that a slice belongs to; None for a slice of a whole frame (7.3.3)."""
        sequence = self._sequence
        if sequence is None or not sequence.has_fields:
            return None
        bits = Bits.of_unit(unit[1:64])
        for _ in range(3):  # First macroblock, slice type, parameter set.
            bits.exp_golomb()
        if sequence.has_colour_planes:
            bits.take(2)
        frame_num = bits.take(sequence.frame_num_bits)
        return _Field(frame_num, bool(bits.take(1))) if bits.take(1) else None


def unit_starts(packet: bytes, length_bytes: int) -> Iterator[bytes]:
    """The start of each NAL unit of a packet of H.264 or HEVC, in which each unit follows its
    length, a number of ``length_bytes`` bytes, or if that is 0 a start code."""
    if length_bytes:
        for unit in units_by_length(packet, length_bytes):
            yield unit[:_HEADER_BYTES]
    else:
        offset = 0
        while (offset := packet.find(b"\0\0\1", offset) + 3) > 2 and offset < len(packet):
            yield packet[offset : offset + _HEADER_BYTES]


def units_by_length(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units of data in which each follows its length, a number of ``length_bytes`` bytes."""
    offset = 0
    while offset + length_bytes < len(data):
        size = int.from_bytes(data[offset : offset + length_bytes])
        offset += length_bytes
        if size:
            yield data[offset : offset + size]
        offset += size


def slice_type(unit: bytes) -> int:
    """``slice_type`` of the NAL unit of a slice (7.3.3)."""
    bits = Bits.of_unit(unit[1:64])
    bits.exp_golomb()  # First macroblock.
    return bits.exp_golomb()
