"""Which pictures the model sees, and at which times, in files whose times are not even."""

from __future__ import annotations

import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered import number_of, write_fields, write_numbered, write_raw_fields
from qwen_vl_utils import process_vision_info
from video_pipeline.data.clips import ClipsDataset
from video_pipeline.data.stills import FirstFrameDataset
from video_pipeline.decode.preparing import _video_seconds
from video_pipeline.report.contact_sheet import pictures
from video_pipeline.video.container import Video
from video_pipeline.video.decode_pyav import decode_frames
from video_pipeline.video.errors import VideoReadError, noting_damage
from video_pipeline.video.reader import probe, read_frame, read_video, register_reader

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def registered() -> None:
    register_reader()


def seen(path: Path, **item: object) -> list[tuple[int, float]]:
    """Number and told time of the pictures that ``process_vision_info`` gives."""
    content = {"type": "video", "video": str(path), "resize": "exact", **item}
    _, videos, _ = process_vision_info(
        [{"role": "user", "content": [content]}],
        return_video_kwargs=True,
        return_video_metadata=True,
    )
    shown = pictures({"multi_modal_data": {"video": videos}})
    return [(number_of(np.asarray(each.image)), each.seconds) for each in shown]


def all_numbers(path: Path, **item: object) -> list[int]:
    with Video(str(path)) as video:
        count = len(video.stamps)
    return [number for number, _ in seen(path, nframes=count, **item)]


def plain_decode(path: Path) -> list[int]:
    """What FFmpeg's decoder gives for the whole file."""
    with av.open(str(path)) as container:
        return [number_of(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


# --- a variable rate ---------------------------------------------------------------------------


def time_of(number: int) -> float:
    """Two seconds at 25 pictures a second, then one picture a second."""
    return number / 25 if number < 50 else number - 48.0


@pytest.fixture(scope="module", params=["vfr.mp4", "vfr.mkv"])
def uneven(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("uneven") / request.param
    return write_numbered(path, 100, times=[time_of(number) for number in range(100)])


@pytest.mark.parametrize(
    "item",
    [
        {"nframes": 8},
        {"fps": 0.5},
        {"fps": 2.0},
        {"keyframes": True},
        {"fps": 1.0, "video_start": 20.0, "video_end": 30.0},
        {"nframes": 4, "video_start": 0.5, "video_end": 1.5},
    ],
    ids=repr,
)
def test_told_times_are_those_of_the_pictures(uneven: Path, item: dict) -> None:
    shown = seen(uneven, **item)
    assert len(shown) >= 2
    for number, seconds in shown:
        assert seconds == pytest.approx(time_of(number), abs=0.002)


def test_an_uneven_video_is_sampled_by_time(uneven: Path) -> None:
    """Each picture is the one on the screen at its time."""
    shown = seen(uneven, nframes=18)
    for place, (number, _) in enumerate(shown):
        wanted = place * 51 / 17
        assert time_of(number) <= wanted + 0.002 < time_of(number + 1)


def test_the_rate_says_how_far_the_pictures_are_apart(uneven: Path) -> None:
    """Qwen2.5-VL is told nothing else: transformers works it out from the metadata."""
    from transformers.video_utils import VideoMetadata

    _, metadata, rate = read_video({"video": str(uneven), "nframes": 18})
    assert rate == pytest.approx(17 / 51)
    assert VideoMetadata(**metadata).sampled_fps == pytest.approx(rate)
    assert metadata["duration"] == pytest.approx(52, abs=1.01)  # how long the last one lasts


@pytest.mark.parametrize(
    ("start", "end", "half_open", "expected"),
    [
        (20.0, 30.0, False, list(range(68, 79))),
        (20.0, 30.0, True, list(range(68, 78))),
        (0.0, 2.0, True, list(range(50))),
        (1.0, 2.0, False, list(range(25, 51))),
        (50.5, None, False, [98, 99]),  # only one begins there, so that on the screen comes first
        (30.2, 30.8, False, [78]),
        (30.2, 31.0, True, [78]),
        (30.2, 31.0, False, [78, 79]),
    ],
)
def test_a_segment_holds_the_frames_that_begin_in_it(
    uneven: Path, start: float, end: float | None, half_open: bool, expected: list[int]
) -> None:
    with Video(str(uneven)) as video:
        first, last = video.segment(start, end, half_open=half_open)
    assert list(range(first, last + 1)) == expected


def test_a_picture_that_stays_on_the_screen_is_shown_twice(uneven: Path) -> None:
    shown = seen(uneven, fps=2.0, video_start=30.2, video_end=30.8)
    assert [number for number, _ in shown] == [78, 78]


@pytest.mark.parametrize("spacing", ["uneven", "even"])
def test_a_picture_that_stays_is_shown_twice_where_key_frames_are_wanted(
    uneven: Path, tmp_path: Path, spacing: str
) -> None:
    path = uneven if spacing == "uneven" else write_numbered(tmp_path / "even.mp4", 50)
    shown = seen(path, keyframes=True, video_start=1.01, video_end=1.02)
    assert [number for number, _ in shown] == [25, 25]


def test_the_first_frame_of_a_segment(uneven: Path) -> None:
    for seconds, number in ((None, 0), (0.0, 0), (1.0, 25), (20.0, 68), (20.5, 69)):
        assert number_of(np.asarray(read_frame(str(uneven), seconds))) == number


@pytest.mark.parametrize(
    ("start", "end", "number"),
    [
        (10, 15, 1),
        (10, 22, 1),
        (10, 30, 2),
        (26, None, 3),
        (39.98, None, 4),
        (-5, 2, 0),
        (None, 15, 0),
    ],
)
def test_a_first_frame_is_one_of_its_segment(
    tmp_path: Path, start: float | None, end: float | None, number: int
) -> None:
    """It is the picture that is on the screen where fewer than two begin, as in ``read_video``."""
    path = str(write_numbered(tmp_path / "slow.mp4", 5, times=[0, 4, 20, 24, 39.96]))
    dataset = object.__new__(FirstFrameDataset)
    dataset.vision_kwargs = {}
    sample = {"__video_uri": path, "video_start": start, "video_end": end}
    image = dataset.visual({"video": path}, sample)["image"]
    shown = seen(Path(path), nframes=2, video_start=start, video_end=end)
    assert number_of(np.asarray(image)) == number == shown[0][0]


def test_a_first_frame_after_the_end_of_the_video(uneven: Path) -> None:
    with pytest.raises(VideoReadError, match=r"there is nothing from 60 s to [\d.]+ s: it lasts"):
        read_frame(str(uneven), 60)


def test_windows_of_an_uneven_video_share_no_picture_and_lose_none(uneven: Path) -> None:
    sample = {"path": str(uneven), "__key": "k", "__video_uri": str(uneven)}
    windows = ClipsDataset.expand(sample, {"clip_seconds": 10.0})
    assert len(windows) == 5
    shown = []
    with Video(str(uneven)) as video:
        for each in windows:
            first, last = video.segment(each["video_start"], each["video_end"], half_open=True)
            shown += range(first, last + 1)
            assert time_of(first) == pytest.approx(each["video_start"])
    assert shown == list(range(100))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), 30, 60])
def test_rounded_times_are_even(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    path = write_numbered(tmp_path / f"even.{suffix}", 100, rate=rate)
    with Video(str(path)) as video:
        assert video.is_even


def test_one_late_frame_makes_a_video_uneven(tmp_path: Path) -> None:
    times = [number / 25 + (0.02 if number == 30 else 0) for number in range(60)]
    with Video(str(write_numbered(tmp_path / "late.mp4", 60, times=times))) as video:
        assert not video.is_even


def test_a_segment_is_exact_where_floats_are_not(tmp_path: Path) -> None:
    """0.28 * 25 is a little more than 7."""
    path = write_numbered(tmp_path / "even.mp4", 50)
    assert [number for number, _ in seen(path, nframes=2, video_start=0.28, video_end=0.56)] == [
        7,
        14,
    ]


# --- times that begin again ----------------------------------------------------------------------

JOINED = {
    "h264.ts": {"options": {"bf": "3", "g": "12"}, "format": "mpegts"},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "b": "2M"}, "format": "mpegts"},
    "hevc.ts": {
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:keyint=12"},
        "format": "mpegts",
    },
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "b": "2M"}, "format": "mpeg"},
    "h264.mkv": {"options": {"bf": "3"}, "format": "matroska"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", JOINED)
def test_joined_pieces_follow_each_other(tmp_path: Path, name: str) -> None:
    pieces = [
        write_numbered(tmp_path / f"{first}.{name}", 50, first=first, **JOINED[name])
        for first in (0, 1000, 2000)
    ]
    path = tmp_path / name
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    expected = [first + number for first in (0, 1000, 2000) for number in range(50)]
    if name == "h264.mkv":  # FFmpeg stops at the third
        del expected[100:]
    assert plain_decode(path) == expected
    assert all_numbers(path) == expected
    assert probe(str(path)).duration == pytest.approx(len(expected) / 25, abs=0.1)
    shown = seen(path, nframes=4, video_start=1.0, video_end=3.0)
    for number, seconds in shown:
        assert seconds == pytest.approx(2.0 * (number // 1000) + number % 1000 / 25, abs=0.05)
    with noting_damage() as damage:
        read_video({"video": str(path), "nframes": 4})
    assert not damage


def test_joined_pieces_whose_times_fall_between_each_other(tmp_path: Path) -> None:
    """No two frames have the same time, so the times alone do not look wrong."""
    late = [0.013 + number / 25 for number in range(50)]
    pieces = [
        write_numbered(tmp_path / "a.ts", 50, format="mpegts"),
        write_numbered(tmp_path / "b.ts", 50, first=1000, times=late, format="mpegts"),
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    assert probe(str(path)).duration == pytest.approx(4.0, abs=0.1)
    shown = seen(path, nframes=10)
    assert [number // 1000 for number, _ in shown] == [0] * 5 + [1] * 5


def test_a_gap_in_a_recording_is_closed_as_ffmpeg_does(tmp_path: Path) -> None:
    """More than ten seconds in an MPEG stream; in an MP4 a gap is a picture that stays."""
    times = [number / 25 + (100 if number >= 25 else 0) for number in range(50)]
    stream = write_numbered(
        tmp_path / "gap.ts", 50, times=times, format="mpegts", options={"bf": "0"}
    )
    assert probe(str(stream)).duration == pytest.approx(2.0, abs=0.1)
    file = write_numbered(tmp_path / "gap.mp4", 50, times=times)
    assert probe(str(file)).duration == pytest.approx(102.0, abs=0.1)


@pytest.mark.parametrize("format", ["mpegts", "mp4"])
def test_a_long_pause_with_reordered_pictures(tmp_path: Path, format: str) -> None:
    """Times of pictures pass the gap before decoding times do: it is a part of the stream."""
    times = [number / 25 + (15 if number >= 50 else 0) for number in range(100)]
    path = write_numbered(tmp_path / "pause", 100, times=times, format=format, options={"bf": "2"})
    for number, seconds in seen(path, nframes=10):
        assert seconds == pytest.approx(times[number], abs=0.002)


def remux(source: Path, target: Path) -> Path:
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return target


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_stream_that_may_reorder_pictures_and_does_not(tmp_path: Path, suffix: str) -> None:
    """Its packets' times ascend, as made-up ones do."""
    times = [0.0, 1.0, 10.0, 11.0, 30.0, 31.0, 32.0, 60.0, 61.0]
    path = tmp_path / f"still.{suffix}"
    write_numbered(path, len(times), times=times, options={"bf": "3", "g": "2"})
    with av.open(str(path)) as container:
        decoder = container.streams.video[0].codec_context
        assert decoder.has_b_frames > 0
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [float(packet.pts * packet.time_base) for packet in packets] == pytest.approx(times)
    assert seen(path, nframes=8) == [
        (number, pytest.approx(times[number], abs=0.002)) for number, _ in seen(path, nframes=8)
    ]
    assert seen(path, nframes=2, video_start=30.0, video_end=31.5) == [
        (4, pytest.approx(30.0, abs=0.002)),
        (5, pytest.approx(31.0, abs=0.002)),
    ]
    keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert keys[1:]
    with Video(str(path)) as video:
        assert list(video.keyframes) == keys


@pytest.mark.parametrize("suffix", ["avi", "asf"])
def test_reordered_pictures_where_the_format_has_no_times_for_them(
    tmp_path: Path, suffix: str
) -> None:
    """FFmpeg makes up times, in the wrong order."""
    source = write_numbered(tmp_path / "b.ts", 100, options={"bf": "3", "g": "30"}, format="mpegts")
    path = remux(source, tmp_path / f"b.{suffix}")
    assert plain_decode(path) == list(range(100))
    assert all_numbers(path) == list(range(100))
    for number, seconds in seen(path, nframes=6):
        assert seconds == pytest.approx(number / 25, abs=0.05)


# --- pieces of a video ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 50), (100, 50)],
        [(75, 50), (0, 50)],
        [(25, 50), (25, 50)],
        [(0, 50), (83, 50)],  # Its key frame comes before it, at the time of another frame.
        [(7, 21), (60, 13), (31, 40)],
        [(0, 10), (85, 31)],  # Two key frames have the same time.
    ],
    ids=str,
)
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_an_edit_list_of_several_pieces(
    tmp_path: Path, b_frames: str, pieces: list[tuple[int, int]]
) -> None:
    """What is cut away between two pieces overlaps with the next, and takes no time."""
    options = {"bf": b_frames, "g": "25", "sc_threshold": "0"}
    whole = write_numbered(tmp_path / "whole.mp4", 150, options=options)
    path = with_edits(whole, tmp_path / "pieces.mp4", pieces)
    with av.open(str(path)) as container:
        expected = [
            (frame.pts, number_of(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(video=0)
        ]
    assert len(expected) == pytest.approx(sum(count for _, count in pieces), abs=4)
    with Video(str(path)) as video:
        assert video.stamps == [stamp for stamp, _ in expected]
        positions = range(len(expected))
        numbers = [number_of(shown.pixels.numpy()) for shown in decode_frames(video, positions)]
        assert numbers == [number for _, number in expected]
        for position in positions:
            (shown,) = decode_frames(video, [position])
            assert number_of(shown.pixels.numpy()) == numbers[position]
        keys = [numbers[position] for position in video.keyframes]
    assert keys == [number for number in numbers if number % 25 == 0]


def with_edits(source: Path, target: Path, pieces: list[tuple[int, int]]) -> Path:
    """A copy of an MP4 at 25 frames a second that shows these pieces of it: first frame, count."""
    data = source.read_bytes()
    places, begin = [], 0
    for name in (b"moov", b"trak", b"edts", b"elst"):
        begin = data.index(name, begin) - 4
        places.append(begin)
    size, start = (
        int.from_bytes(data[begin : begin + 4]),
        int.from_bytes(data[begin + 20 : begin + 24]),
    )
    entries = [(40 * count, start + 512 * first, 1 << 16) for first, count in pieces]
    box = struct.pack(">4s2I", b"elst", 0, len(pieces))
    box += b"".join(struct.pack(">3I", *entry) for entry in entries)
    edited = bytearray(data[:begin] + bytes(4) + box + data[begin + size :])
    for place in places:
        old = 0 if place == begin else int.from_bytes(data[place : place + 4]) - size
        edited[place : place + 4] = (old + 4 + len(box)).to_bytes(4)
    target.write_bytes(edited)
    return target


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("packets", ["pair", "each"])
@pytest.mark.parametrize("format", ["mpegts", "mpeg", "mp4", "matroska"])
def test_two_fields_are_one_frame(tmp_path: Path, packets: str, format: str) -> None:
    path = write_fields(tmp_path / "fields.video", 20, packets=packets, format=format)
    assert plain_decode(path) == list(range(20))
    info = probe(str(path))
    # a container may say that the last field lasts as long as a frame
    assert (info.frames, info.duration) == (20, pytest.approx(0.8, abs=0.041))
    assert seen(path, nframes=4) == [
        (number, pytest.approx(number / 25, abs=0.04)) for number in (0, 6, 13, 19)
    ]
    assert all_numbers(path) == list(range(20))
    assert all_numbers(path, keyframes=True) == list(range(20))


# --- streams without times -----------------------------------------------------------------------

RAW = {
    "h264": {"options": {"bf": "3", "g": "12"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}},
    "mpeg2video": {"codec": "mpeg2video", "options": {"bf": "2", "b": "2M"}},
    "m4v": {"codec": "mpeg4", "options": {"bf": "2", "b": "2M"}},
    "mjpeg": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    # FFmpeg makes up times for it, and takes every packet for a key frame
    "h263": {"codec": "h263", "size": (176, 144), "options": {"b": "2M"}},
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_stream_is_read_at_its_rate(tmp_path: Path, name: str) -> None:
    rate = Fraction(30000, 1001) if name == "h263" else 25
    path = write_numbered(tmp_path / "raw", 60, format=name, rate=rate, **RAW[name])
    assert seen(path, nframes=4) == [
        (number, pytest.approx(number / rate, abs=0.001)) for number in (0, 20, 39, 59)
    ]
    assert all_numbers(path) == list(range(60))
    assert probe(str(path)).duration == pytest.approx(float(60 / rate))


def test_a_raw_stream_knows_its_own_rate(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "raw", 60, format="h264", rate=50)
    assert probe(str(path)).fps == pytest.approx(50)


def test_raw_fields(tmp_path: Path) -> None:
    path = write_raw_fields(tmp_path / "raw.h264", 20)
    assert [number for number, _ in seen(path, nframes=20)] == list(range(20))


@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_first_packets_without_times(tmp_path: Path, b_frames: str) -> None:
    """A transport stream need not give each picture a time, and may begin with those without."""
    options = {"bf": b_frames, "g": "25"}
    path = write_numbered(tmp_path / "late.ts", 60, format="mpegts", options=options)
    stream = bytearray(path.read_bytes())
    starts = [place for place in range(0, len(stream), 188) if starts_picture(stream, place)]
    assert len(starts) == 60
    for place in starts[:5]:
        header = stream.index(b"\0\0\1\xe0", place)
        length = stream[header + 8]
        stream[header + 7] &= 0x3F  # PTS_DTS_flags
        stream[header + 9 : header + 9 + length] = b"\xff" * length
    path.write_bytes(stream)
    with av.open(str(path)) as container:
        assert next(container.demux(video=0)).pts is None
    assert all_numbers(path) == plain_decode(path) == list(range(60))
    assert seen(path, nframes=4, video_start=0.0, video_end=1.2) == [
        (number, pytest.approx(number / 25, abs=0.001)) for number in (0, 10, 20, 30)
    ]
    assert probe(str(path)).duration == pytest.approx(60 / 25)


def starts_picture(stream: bytes, place: int) -> bool:
    """Whether the packet of a transport stream at ``place`` begins a PES packet of its video."""
    identifier = int.from_bytes(stream[place + 1 : place + 3]) & 0x1FFF
    return identifier == 0x100 and bool(stream[place + 1] & 0x40)


# --- state in the first packets ------------------------------------------------------------------

STATEFUL = {
    "palette.nut": {"codec": "rawvideo", "pixel_format": "pal8"},
    "raw.avi": {"codec": "rawvideo", "pixel_format": "pal8"},
    "motion.avi": {"codec": "zmbv", "pixel_format": "bgr0"},
    "animation.mov": {"codec": "qtrle", "pixel_format": "rgb24"},
    "animation.gif": {"codec": "gif", "pixel_format": "rgb8"},
    "screen.flv": {"codec": "flashsv", "pixel_format": "bgr24"},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_decoder_that_needs_the_first_packets_gets_them(tmp_path: Path, name: str) -> None:
    arguments = STATEFUL[name]
    palette = arguments["pixel_format"] == "pal8"
    write = write_palette if palette else write_numbered
    path = write(tmp_path / name, 40, **({} if palette else arguments))
    assert [number for number, _ in seen(path, nframes=4)] == [0, 13, 26, 39]
    shown = seen(path, nframes=2, video_start=0.8)
    assert [number for number, _ in shown] == [20, 39]


def write_palette(path: Path, count: int) -> Path:
    """Pictures of a palette, which the container gives with the first packet only."""
    from numbered import SIDE, picture

    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "pal8"
        levels = np.arange(256, dtype=np.uint8)
        palette = np.stack([np.full(256, 255, np.uint8), levels, levels, levels], axis=-1)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray((picture(number), palette), "pal8")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("mpeg4", "mp4"), ("h263", "mov"), ("msmpeg4", "avi"), ("flv", "flv"), ("mpeg2video", "mov")],
)
def test_a_packet_that_only_claims_to_be_a_key_frame(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    """Decoders of this kind begin with it all the same, and make up the picture before."""
    options = {"g": "25", "b": "2M"}
    size = (176, 144)  # One of those that H.263 has.
    source = write_numbered(tmp_path / "a.nut", 100, codec=codec, size=size, options=options)
    path = tmp_path / f"b.{suffix}"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream, packet.is_keyframe = stream, True
                new.mux(packet)
    whole = seen(path, nframes=100)
    for begin in (0.4, 1.32, 2.52):
        (first, *_), (second, *_) = seen(path, nframes=2, video_start=begin, video_end=begin + 0.04)
        assert [first, second] == [round(begin * 25), round(begin * 25) + 1]
    assert [number for number, _ in whole] == list(range(100))


# --- what is lost --------------------------------------------------------------------------------


def damage(path: Path, target: Path, begin: float, end: float) -> Path:
    """Noise from ``begin`` to ``end``, shares of the file."""
    data = bytearray(path.read_bytes())
    chance = random.Random(0)
    for place in range(int(begin * len(data)), int(end * len(data))):
        data[place] = chance.randrange(256)
    target.write_bytes(data)
    return target


def noisy(path: Path, format: str) -> Path:
    """A clip of key frames each second and enough bytes to damage."""
    chance = np.random.default_rng(0)
    options = {"g": "25", "bf": "0", "sc_threshold": "0"}
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width = stream.height = 128
        stream.pix_fmt = "yuv420p"
        for _ in range(200):
            grain = chance.integers(0, 256, (128, 128), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grain, "gray")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("format", ["mp4", "mpegts"])
def test_damage_that_no_sampled_frame_needs_is_noted(tmp_path: Path, format: str) -> None:
    whole = noisy(tmp_path / "whole", format)
    path = damage(whole, tmp_path / "damaged", 0.40, 0.42)
    with noting_damage() as noted:
        frames, _, _ = read_video({"video": str(path), "nframes": 8})
    assert len(frames) == 8
    if format == "mpegts":  # the demuxer sees it, wherever it is
        assert noted
    with noting_damage() as noted:
        read_video({"video": str(whole), "nframes": 8})
    assert not noted


def test_what_a_demuxer_passes_over_is_noted(tmp_path: Path) -> None:
    """Matroska marks no packet: a stretch of the file is not there."""
    path = damage(noisy(tmp_path / "whole", "matroska"), tmp_path / "damaged", 0.40, 0.45)
    with noting_damage() as noted:
        read_video({"video": str(path), "nframes": 4})
    assert noted


def test_a_gap_in_a_transport_stream_is_passed_over(tmp_path: Path) -> None:
    """FFmpeg gives up at each 64 kB of it."""
    stream = write_numbered(tmp_path / "whole.ts", 100, format="mpegts").read_bytes()
    path, middle = tmp_path / "gap.ts", len(stream) // 376 * 188
    path.write_bytes(stream[:middle] + bytes(300_000) + stream[middle:])
    with noting_damage() as noted:
        assert all_numbers(path) == list(range(100))
    assert noted


def test_damage_is_noted_for_each_sample_of_one_video(tmp_path: Path) -> None:
    """The dataset keeps the frame that it read last."""
    path = str(damage(noisy(tmp_path / "whole", "mpegts"), tmp_path / "damaged", 0.40, 0.42))
    dataset = object.__new__(FirstFrameDataset)
    for _ in range(2):
        with noting_damage() as noted:
            dataset._frame(path, None, None)
        assert noted


def test_damage_at_the_start_is_no_late_start(tmp_path: Path) -> None:
    whole = noisy(tmp_path / "whole", "mp4")
    path = damage(whole, tmp_path / "damaged", 0.001, 0.02)
    with pytest.raises(VideoReadError, match=r"the one at 0\.000 s could not; damaged"):
        read_video({"video": str(path), "nframes": 4})


def test_damage_on_the_way_is_noted_and_a_lost_frame_is_an_error(tmp_path: Path) -> None:
    path = damage(noisy(tmp_path / "whole", "mp4"), tmp_path / "damaged", 0.40, 0.42)
    # from 3.0 s on frames are decoded through the damage, which ends with the second
    with noting_damage() as noted:
        read_video({"video": str(path), "nframes": 2, "video_start": 2.9, "video_end": 3.96})
    assert noted
    with pytest.raises(
        VideoReadError, match=r"could be decoded; the one at 3\.\d+ s could not; damaged"
    ):
        read_video({"video": str(path), "nframes": 200})


def test_a_recording_that_begins_between_two_key_frames(tmp_path: Path) -> None:
    """Its first frames cannot be decoded: it begins with the first that can, as ffmpeg's does."""
    whole = write_numbered(
        tmp_path / "whole.ts", 100, options={"bf": "3", "g": "25"}, format="mpegts"
    )
    packets = whole.read_bytes()
    path = tmp_path / "late.ts"
    path.write_bytes(packets[188 * (len(packets) // 188 // 3) :])
    shown = seen(path, nframes=4)
    first = shown[0][0]
    assert first == plain_decode(path)[0] > 0
    for number, seconds in shown:
        assert seconds == pytest.approx((number - first) / 25, abs=0.001)


def test_a_video_may_stand_without_a_list() -> None:
    """vLLM takes it so, too; then its length counts as well."""
    metadata = {"fps": 2.0, "frames_indices": [0, 1], "total_num_frames": 3}
    video = (np.zeros((2, 8, 8, 3), np.uint8), metadata)
    for media in (video, [video]):
        llm_input = {"multi_modal_data": {"video": media, "image": None}}
        assert [picture.seconds for picture in pictures(llm_input)] == [0.0, 0.5]
        assert _video_seconds(llm_input) == 1.5
