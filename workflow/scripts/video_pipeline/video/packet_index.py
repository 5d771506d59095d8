"""Finds the frames of a video file by reading every packet once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import av
from av.format import Flags

from video_pipeline.video.demuxer import Demuxer, EntryPoint
from video_pipeline.video.errors import VideoReadError, note_damage
from video_pipeline.video.references import References, references_of
from video_pipeline.video.timeline import Timeline, stamp_of

SEEKABLE_CODECS = frozenset(
    {"av1", "dnxhd", "ffv1", "flv1", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video"}
    | {"mpeg4", "msmpeg4v2", "msmpeg4v3", "prores", "theora", "vc1", "vp8", "vp9", "vvc"}
    | {"wmv1", "wmv2", "wmv3"}
)
"""FFmpeg's names of the codecs that can be decoded from any key frame on. Other decoders may need
something that only the first packets hold, such as a palette: they are fed from the start."""

DEFAULT_RATE = Fraction(25)
"""Frames per second of a raw stream that does not say its rate: FFmpeg's own default."""

_NO_TIMESTAMPS: int = Flags.no_timestamps.value  # type: ignore[assignment]  # PyAV's stub errs

_FILE_START = EntryPoint(0, 0)


@dataclass
class PacketIndex:
    """The frames and the entry points of a stream.

    Attributes:
        time_base: Seconds in one unit of all times here.
        is_seekable: Whether decoding may start at any key frame.
        is_counted: Whether frames are known by their place in the decoder's output, because their
            packets do not say their times.
        ends: When each frame ends, by the time when it begins.
        keys: When the frames begin that can be decoded without others.
        entries: The packets that decoding can start from.
        start: The first packet.
        references: The packets that each packet is made from; None if they are not known.
        damage: What was wrong with a packet, else None.
    """

    time_base: Fraction
    is_seekable: bool
    is_counted: bool = False
    ends: dict[int, int] = field(default_factory=dict)
    keys: set[int] = field(default_factory=set)
    entries: list[EntryPoint] = field(default_factory=list)
    start: EntryPoint = _FILE_START
    references: References | None = None
    damage: str | None = None


def index_packets(demuxer: Demuxer) -> PacketIndex:
    """Read every packet of ``demuxer``, and decode the frames if packets do not say their times.
    Raises :class:`VideoReadError` if the file is truncated, or its stream has no frames."""
    timeline, time_base = demuxer.timeline, demuxer.stream.time_base
    assert timeline is not None
    assert time_base is not None
    codec = demuxer.decoder.codec.canonical_name
    references = references_of(codec, demuxer.decoder.extradata or b"")
    index = PacketIndex(time_base, is_seekable=codec in SEEKABLE_CODECS, references=references)
    errors_before, _ = av.logging.get_last_error()
    is_ascending = _read_packets(demuxer, timeline, index)
    errors, error = av.logging.get_last_error()
    if timeline.damage:
        index.damage = timeline.damage
    elif errors > errors_before and error is not None:
        index.damage = f"FFmpeg reads it with errors: {error[2].strip()}"
    if index.damage:
        note_damage(index.damage)
    if timeline.is_regular:
        demuxer.timeline = None  # There is nothing to correct.
    else:
        demuxer.can_seek = False  # A seek would forget the corrections.
    _count_if_untimed(demuxer, timeline, index, is_ascending)
    if not index.is_seekable:
        index.entries, demuxer.can_seek = [index.start], False
    index.entries.sort(key=lambda entry: entry.stamp)
    _drop_unseen(demuxer, timeline, index)
    if not index.ends:
        raise VideoReadError("its video stream has no frames")
    return index


def index_header(demuxer: Demuxer) -> PacketIndex:
    """The index by the header of ``demuxer``, with which only the first frame can be decoded. MP4
    and MOV list all frames; those of other formats are taken as evenly spaced. Raises
    :class:`VideoReadError` if the header does not say how many there are."""
    stream, time_base = demuxer.stream, demuxer.stream.time_base
    assert time_base is not None
    listed: dict[int, bool] = {}
    if "mp4" in demuxer.container.format.name:
        shown = (entry for entry in stream.index_entries if not entry.is_discard)
        listed = {entry.timestamp: entry.is_keyframe for entry in shown}
    ticks = stream.duration
    if not ticks:
        seconds = (demuxer.container.duration or 0) / av.time_base
        ticks = round(seconds / time_base)
    if listed and not stream.frames and max(listed) - min(listed) < ticks - 2 * ticks / len(listed):
        listed = {}  # Of a fragmented MP4 with an index of its fragments, only the first is listed.
    rate = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    count = len(listed) or stream.frames or round(ticks * time_base * rate)
    if not (ticks and count):
        raise VideoReadError("its header does not say how long it is")
    stamps = sorted(listed) or [n * ticks // count for n in range(count)]
    end = max(stamps[-1] + 1, stamps[0] + ticks)
    demuxer.can_seek = False
    return PacketIndex(
        time_base,
        is_seekable=False,
        is_counted=True,
        ends=dict(zip(stamps, [*stamps[1:], end], strict=True)),
        keys={stamp for stamp in stamps if listed.get(stamp, stamp == stamps[0])},
        entries=[EntryPoint(stamps[0], 0)],
    )


def _read_packets(demuxer: Demuxer, timeline: Timeline, index: PacketIndex) -> bool:
    """Fill ``index`` from the packets; returns whether their times ascend."""
    is_ascending, previous = True, -math.inf
    while (packet := demuxer.read()) is not None:
        stamp = stamp_of(packet)
        if stamp is None and packet.size == 0:
            break
        if index.references is not None:
            index.references.add(stamp, bytes(packet))
        if stamp is None:
            index.is_counted = True
            continue
        # A seek would leave this state of the decoder behind.
        if packet.has_sidedata("palette") or packet.has_sidedata("new_extradata"):
            index.is_seekable = False
        duration = packet.duration or 0
        if timeline.is_second_field:
            if stamp in index.ends:
                index.ends[stamp] += duration
            continue
        is_ascending, previous = is_ascending and stamp > previous, stamp
        if packet.is_keyframe and not packet.is_discard:
            index.keys.add(stamp)
        if packet.is_keyframe and index.entries and stamp <= index.entries[-1].stamp:
            index.is_seekable = False  # An edit list repeats times: a seek may find the other one.
        if packet.is_keyframe or not index.entries:
            index.entries.append(EntryPoint(stamp, demuxer.position - 1))
        if not packet.is_discard:  # An edit list cuts those away, but later frames need them.
            if stamp in index.ends:  # Times do not tell the frames apart.
                index.is_counted = True
            index.ends[stamp] = stamp + duration
    if index.entries:
        index.start = index.entries[0]
    _check_complete(demuxer, num_packets=demuxer.position - 1)
    return is_ascending


def _check_complete(demuxer: Demuxer, num_packets: int) -> None:
    """Raise :class:`VideoReadError` if an MP4 or MOV, which lists its packets, is cut off."""
    if "mp4" in demuxer.container.format.name:
        expected = len(demuxer.stream.index_entries)
        if num_packets < expected:
            raise VideoReadError(
                f"the file is truncated: {num_packets} of {expected} frames are there"
            )


def _count_if_untimed(
    demuxer: Demuxer, timeline: Timeline, index: PacketIndex, is_ascending: bool
) -> None:
    """Decode all frames to count them if packets do not say when they are shown."""
    container_format = demuxer.container.format
    # FFmpeg makes up times for a raw stream, and in some it takes every packet for a key frame.
    is_raw = bool(container_format.flags & _NO_TIMESTAMPS)
    # In a format that has no times for reordered pictures, such as AVI, it makes them up, too.
    has_order = timeline.is_mpeg or not (is_ascending or container_format.name == "avi")
    is_made_up = not has_order and demuxer.decoder.has_b_frames > 0
    if not (is_raw or is_made_up or index.is_counted):
        return
    is_timed = bool(index.entries) and not is_raw
    if is_timed and not index.is_counted and _is_in_order(demuxer):
        return
    index.is_counted, index.is_seekable, index.keys = True, False, set()
    rate = demuxer.decoder.framerate or demuxer.stream.guessed_rate or DEFAULT_RATE
    if not is_timed:
        index.time_base = 1 / rate
    step = max(1, round(1 / (rate * index.time_base)))
    index.start, index.ends = _FILE_START, {}
    stamps: list[int | None] = [
        (frame.dts if is_made_up else stamp_of(frame)) if is_timed else None
        for frame in demuxer.decode_all()
    ]
    # Without a time a frame follows the one before at the rate of the stream. A recording may begin
    # with such frames: they end where the first time is.
    following = next((stamp - n * step for n, stamp in enumerate(stamps) if stamp is not None), 0)
    for stamp in stamps:
        begin = following if stamp is None or stamp <= following - step else stamp
        following = index.ends[begin] = begin + step


def _is_in_order(demuxer: Demuxer) -> bool:
    """Whether the decoder gives its frames in the order of their packets' times. Then these are
    true: the stream only declares that it may reorder pictures."""
    previous = -math.inf
    for frame in demuxer.decode_all():
        stamp = stamp_of(frame)
        if stamp is None or stamp <= previous:
            return False
        previous = stamp
    demuxer.damage = None
    return True


def _drop_unseen(demuxer: Demuxer, timeline: Timeline, index: PacketIndex) -> None:
    """Drop the frames at the start that no decoder can show, because the recording begins between
    two key frames and lacks the pictures that they are made from."""
    if index.is_counted or not index.ends:
        return
    is_late = min(index.ends) < min(index.keys, default=math.inf)
    # Other formats begin with a key frame, unless that is damaged.
    if is_late and (index.start.stamp in index.keys or timeline.is_mpeg):
        first = next(demuxer.decode_all(), None)
        shown = None if first is None else stamp_of(first)
        if shown is not None:
            index.ends = {begin: end for begin, end in index.ends.items() if begin >= shown}
        demuxer.damage = None
