"""Tells which packets the sampled frames of a stream are made from.

The headers of HEVC say which pictures no other picture is made from. Those of AV1 name the pictures
that each picture is made from. The packets of all other pictures need not reach the decoder, and no
pixel of the sampled frames changes. For H.264 the decoder does this itself. In VP9 each frame needs
the probabilities that the frame before it has left.

Section numbers are those of Rec. ITU-T H.265 (08/2021), and of the AV1 Bitstream & Decoding Process
Specification (version 1.0.0 with errata 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from contextlib import suppress
from typing import NamedTuple

from video_pipeline.video.bits import Bits
from video_pipeline.video.h264 import unit_starts


class _Needs(NamedTuple):
    """What a packet needs, and who needs it.

    Attributes:
        stamp: When its picture is shown.
        is_always_needed: Whether the decoder has to get it in any case.
        packets: The ordinals of the packets that its pictures are made from.
    """

    stamp: int | None
    is_always_needed: bool
    packets: tuple[int, ...] = ()


class _Unknown(Exception):
    """The stream uses a feature that is not followed here."""


class References(ABC):
    """The packets that each packet of a stream is made from; :meth:`add` takes them in order."""

    def __init__(self) -> None:
        self._packets: list[_Needs] = []
        self._is_known = True

    def add(self, stamp: int | None, packet: bytes) -> None:
        """Look at the next packet of the file; ``stamp`` is the time of its picture."""
        if not self._is_known:
            return
        try:
            self._packets.append(self._needs(stamp, packet))
        except (_Unknown, IndexError):  # A damaged header ends too early.
            self._is_known = False

    def needed(self, wanted: Set[int]) -> Set[int] | None:
        """The ordinals of the packets that the decoder needs for the pictures at the times
        ``wanted``; None for all."""
        if not self._is_known:
            return None
        needed: set[int] = set()
        for ordinal in reversed(range(len(self._packets))):
            needs = self._packets[ordinal]
            if needs.is_always_needed or needs.stamp in wanted or ordinal in needed:
                needed.add(ordinal)
                needed.update(needs.packets)
        return needed

    @abstractmethod
    def _needs(self, stamp: int | None, packet: bytes) -> _Needs: ...


def references_of(codec: str, extradata: bytes) -> References | None:
    """The object that follows a stream of a codec, by FFmpeg's name of it; None if all packets
    reach the decoder."""
    if codec == "hevc":
        return _HevcReferences(extradata)
    return _Av1References(extradata) if codec == "av1" else None


_HEVC_SLICES = range(32)  # Numbers of nal_unit_type (table 7-1).
_HEVC_NON_REFERENCE = frozenset(range(0, 16, 2))  # TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N, RSV_N.
_HEVC_STATE = frozenset({32, 33, 34, 36, 37})  # Parameter sets, and ends of sequence or stream.


class _HevcReferences(References):
    """A picture whose units are non-reference is no reference within its temporal sub-layer, so no
    picture is made from it if there is no higher sub-layer."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        # As FFmpeg tells an hvcC box, whose packets have lengths too, from start codes.
        is_boxed = len(extradata) > 22 and (any(extradata[:2]) or extradata[2] > 1)
        self._length_bytes = (extradata[21] & 3) + 1 if is_boxed else 0
        self._sub_layers: set[int] = set()

    def _needs(self, stamp: int | None, packet: bytes) -> _Needs:
        kinds, sub_layers = set(), set()
        for unit in unit_starts(packet, self._length_bytes):
            kind = unit[0] >> 1 & 63
            kinds.add(kind)
            if kind in _HEVC_SLICES:
                sub_layers.add(unit[1] & 7)
        self._sub_layers |= sub_layers
        if len(self._sub_layers) > 1:
            raise _Unknown
        slices = kinds & set(_HEVC_SLICES)
        is_left = slices and slices <= _HEVC_NON_REFERENCE and not kinds & _HEVC_STATE
        return _Needs(stamp, not is_left)


_SEQUENCE, _FRAME_HEADER, _FRAME, _TILE_LIST = 1, 3, 6, 8  # Numbers of obu_type (6.2.2).
_KEY, _INTRA_ONLY, _SWITCH = 0, 2, 3  # Numbers of frame_type (6.8.2).
_SLOTS, _USED_SLOTS = 8, 7  # Frames that the decoder keeps, and that one may be made from.
_ALL_SLOTS = (1 << _SLOTS) - 1
_BY_FRAME = 2  # Each frame says whether it has the tool (SELECT_SCREEN_CONTENT_TOOLS, 3).
_AV1C, _AV1C_BYTES = b"\x81", 4  # Marker and version of the box, and its size before the OBUs.
_FRAME_HEADER_BYTES = 32  # All fields that are read lie within these.


class _Sequence(NamedTuple):
    """The fields of a sequence header that frame headers depend on."""

    screen_content: int
    integer_vectors: int
    order_bits: int


class _FrameHeader(NamedTuple):
    """``stored``: the slots that take the frame, as bits; ``slots``: those that it is made from."""

    stored: int
    slots: tuple[int, ...]


class _Av1References(References):
    """The sequence header may stand in the av1C box of the file alone."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self._sequence: _Sequence | None = None
        self._slots: list[int | None] = [None] * _SLOTS  # Ordinals of packets.
        if extradata[:1] == _AV1C:
            with suppress(_Unknown, IndexError):
                self._needs(None, extradata[_AV1C_BYTES:])

    def _needs(self, stamp: int | None, packet: bytes) -> _Needs:
        ordinal, is_frame, is_start = len(self._packets), False, False
        made_from: set[int | None] = set()
        for kind, unit in _units(packet):
            if kind == _SEQUENCE:
                self._sequence, is_start = _read_sequence(unit), True
            elif kind in (_FRAME_HEADER, _FRAME):
                if self._sequence is None:
                    raise _Unknown
                is_frame = True
                header = _read_frame_header(unit, self._sequence)
                made_from |= {self._slots[slot] for slot in header.slots}
                for slot in range(_SLOTS):
                    if header.stored >> slot & 1:
                        self._slots[slot] = ordinal
        packets = tuple(p for p in made_from if p is not None and p != ordinal)
        return _Needs(stamp, is_start or not is_frame, packets)


def _units(packet: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the start of each OBU of a packet (5.3)."""
    offset = 0
    while offset < len(packet):
        header = packet[offset]
        kind, has_extension, has_size = header >> 3 & 15, header & 4, header & 2
        if has_extension or kind == _TILE_LIST:  # There may be several layers.
            raise _Unknown
        offset += 1
        size = len(packet) - offset
        if has_size:
            size = shift = 0
            while True:
                byte = packet[offset]
                offset += 1
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
        yield kind, packet[offset : offset + min(size, _FRAME_HEADER_BYTES)]
        offset += size


def _read_sequence(unit: bytes) -> _Sequence:
    """Read a sequence header (5.5). Raises :class:`_Unknown` if frame headers have rare fields."""
    bits = Bits(unit)
    bits.take(4)  # Profile, still picture.
    if bits.take(1):  # A reduced header.
        raise _Unknown
    if bits.take(1):  # Times.
        bits.take(64)
        if bits.take(1):
            bits.exp_golomb()
        if bits.take(1):  # A decoder model.
            raise _Unknown
    has_delay = bits.take(1)
    if bits.take(5):  # More than one operating point.
        raise _Unknown
    bits.take(12)
    if bits.take(5) > 7:
        bits.take(1)
    if has_delay and bits.take(1):
        bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width_bits + height_bits)
    if bits.take(1):  # Frames have numbers.
        raise _Unknown
    bits.take(7)
    has_order = bits.take(1)
    bits.take(2 * has_order)
    screen_content = _BY_FRAME if bits.take(1) else bits.take(1)
    integer_vectors = _BY_FRAME
    if screen_content and not bits.take(1):
        integer_vectors = bits.take(1)
    return _Sequence(screen_content, integer_vectors, bits.take(3) + 1 if has_order else 0)


def _read_frame_header(unit: bytes, sequence: _Sequence) -> _FrameHeader:
    """Read the start of a frame header (5.9.2)."""
    bits = Bits(unit)
    if bits.take(1):  # A frame is shown that was stored. A key frame then fills all slots.
        slot = bits.take(3)
        return _FrameHeader(0, (slot,))
    kind, is_shown = bits.take(2), bits.take(1)
    if not is_shown:
        may_be_shown = bits.take(1)
        if kind == _KEY and may_be_shown:
            raise _Unknown
    fills_all = kind == _SWITCH or (kind == _KEY and is_shown)
    is_resilient = fills_all or bits.take(1)
    bits.take(1)
    screen_content = sequence.screen_content
    if screen_content == _BY_FRAME:
        screen_content = bits.take(1)
    if screen_content and sequence.integer_vectors == _BY_FRAME:
        bits.take(1)
    if kind != _SWITCH:
        bits.take(1)
    bits.take(sequence.order_bits)
    is_intra = kind in (_KEY, _INTRA_ONLY)
    if not (is_intra or is_resilient):
        bits.take(3)
    stored = _ALL_SLOTS if fills_all else bits.take(8)
    if is_intra:
        return _FrameHeader(stored, ())
    if is_resilient and sequence.order_bits:
        bits.take(_SLOTS * sequence.order_bits)
    if sequence.order_bits and bits.take(1):  # The slots follow from the order of all.
        return _FrameHeader(stored, tuple(range(_SLOTS)))
    return _FrameHeader(stored, tuple(bits.take(3) for _ in range(_USED_SLOTS)))
