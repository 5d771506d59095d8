"""The GPU's decoder, with a stand-in for the card: the same frames as the CPU's, or the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from card import CpuCard, CpuSession, Pictures
from numbered import number_of, write_fields, write_numbered, write_raw_fields
from test_reader import CLIPS, MADE, PIXELS, clips  # noqa: F401
from video_pipeline.errors import UserError
from video_pipeline.testing.clips import write_clip
from video_pipeline.video import nvdec, reader, swscale
from video_pipeline.video.bitstream import Unsupported, bitstream
from video_pipeline.video.reader import read_video, use_decoder
from video_pipeline.video.resize import resize_by_products, resize_frame

pytestmark = pytest.mark.slow

NOT_TAKEN = {
    "ten_bit.mkv": "pixels are yuv420p10le",
    "vp9_444.webm": "pixels are yuv444p",
    "b_frames.avi": "the codec is mpeg4",
    "mpeg2.ts": "the codec is mpeg2video",
    "mpeg2.mpg": "the codec is mpeg2video",
    "odd_height.mkv": "the codec is ffv1",
    "tall.ts": "the codec is mpeg4",
}
"""Of the clips of test_reader, those that are left to the CPU."""

TAKEN = [
    name for name in [*CLIPS, *PIXELS] if name not in NOT_TAKEN and name != "intra_refresh.mp4"
]

CODECS = nvdec.CODECS


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> CpuCard:
    """Videos are decoded on it, however small."""
    card = CpuCard()
    small = {name: codec._replace(least=16) for name, codec in CODECS.items()}
    monkeypatch.setattr(nvdec, "CODECS", small)
    monkeypatch.setattr(reader, "_card", reader.CardReader(nvdec.Nvdec(card)))
    return card


def on_cpu(path: Path, **item: object) -> torch.Tensor:
    """What the CPU reader gives."""
    chosen, reader._card = reader._card, None
    try:
        return read_video({"video": str(path), **item})[0]
    finally:
        reader._card = chosen


def on_card(path: Path, **item: object) -> torch.Tensor:
    """What the reader gives, and it came from the card."""
    failures = list(reader._card._logged)
    frames = read_video({"video": str(path), **item})[0]
    assert list(reader._card._logged) == failures
    return frames


def assert_left_to_the_cpu(path: Path, reason: str, **item: object) -> None:
    """The CPU's frames come out, and why is told."""
    item = {"nframes": 4, "resize": "exact", **item}
    assert torch.equal(read_video({"video": str(path), **item})[0], on_cpu(path, **item))
    (told,) = reader._card._logged
    assert told.startswith(reason), told


# --- the same frames -------------------------------------------------------------------------


@pytest.mark.parametrize("nframes", [2, 7, 30])
@pytest.mark.parametrize("name", TAKEN)
def test_frames_are_those_of_the_cpu_to_the_last_bit(
    request: pytest.FixtureRequest, card: CpuCard, name: str, nframes: int
) -> None:
    path = request.getfixturevalue("clips") / name
    nframes -= nframes % 2
    for item in ({"resize": "exact"}, {"image_patch_size": 14}):
        frames = on_card(path, nframes=nframes, **item)
        assert torch.equal(frames, on_cpu(path, nframes=nframes, **item))
    assert card.fed


@pytest.mark.parametrize("segment", [(0.5, 1.2), (1.0, 1.01), (1.3, None)])
@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "variable_rate.mp4", "hevc.mp4"])
def test_segments(
    request: pytest.FixtureRequest, card: CpuCard, name: str, segment: tuple[float, float | None]
) -> None:
    path = request.getfixturevalue("clips") / name
    item = {"video_start": segment[0], "video_end": segment[1], "nframes": 2, "resize": "exact"}
    assert torch.equal(on_card(path, **item), on_cpu(path, **item))


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "libsvtav1"])
def test_the_right_pictures(tmp_path: Path, card: CpuCard, codec: str) -> None:
    options = {"libx265": {"x265-params": "log-level=none"}}.get(codec, {})
    path = write_numbered(
        tmp_path / "clip.mkv", 60, codec=codec, size=(192, 192), options={"g": "15"} | options
    )
    frames = on_card(path, nframes=10)
    numbers = [number_of(frame.permute(1, 2, 0).numpy()) for frame in frames]
    assert numbers == torch.linspace(0, 59, 10).round().int().tolist()


def test_groups_of_pictures_without_a_wanted_frame_are_passed_over(
    tmp_path: Path, card: CpuCard
) -> None:
    path = write_numbered(tmp_path / "clip.mp4", 200, options={"g": "10", "bf": "2"})
    frames = on_card(path, nframes=4)
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in frames] == [0, 66, 133, 199]
    assert card.fed < 80


def test_pictures_that_no_other_needs_stay_out(tmp_path: Path, card: CpuCard) -> None:
    options = {"g": "250", "x264-params": "bframes=3:b-adapt=0:b-pyramid=none"}
    path = write_numbered(tmp_path / "clip.mp4", 100, options=options)
    frames = on_card(path, nframes=4)
    assert [number_of(frame.permute(1, 2, 0).numpy()) for frame in frames] == [0, 33, 66, 99]
    assert card.fed < 40


def test_decoding_begins_where_the_file_holds_no_parameter_sets(
    tmp_path: Path, card: CpuCard
) -> None:
    """A key frame of an open group of pictures (no IDR) in an MP4."""
    options = {"g": "10", "x264-params": "open-gop=1:bframes=3:b-adapt=0"}
    path = write_numbered(tmp_path / "clip.mp4", 60, options=options)
    item = {"video_start": 1.6, "nframes": 4, "resize": "exact"}
    assert torch.equal(on_card(path, **item), on_cpu(path, **item))


def test_a_frame_that_is_shown_twice(tmp_path: Path, card: CpuCard) -> None:
    path = write_numbered(tmp_path / "clip.mp4", 4, times=[0, 1, 9, 10])
    item = {"nframes": 4, "resize": "exact"}
    assert torch.equal(on_card(path, **item), on_cpu(path, **item))


MATRICES = {"bt709": 1, "fcc": 4, "bt470bg": 5, "smpte170m": 6, "smpte240m": 7, "bt2020nc": 9}


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.parametrize("matrix", [None, *MATRICES])
def test_colours(tmp_path: Path, card: CpuCard, matrix: str | None, is_full: bool) -> None:
    told = {} if matrix is None else {"colorspace": str(MATRICES[matrix])}
    told |= {"color_range": "2"} if is_full else {}
    path = write_clip(
        tmp_path / "clip.mp4", width=160, height=96, seconds=0.5, options={"crf": "4"} | told
    )
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == MATRICES.get(matrix, 2)
        assert (frame.color_range == 2) is is_full
    item = {"nframes": 4, "resize": "exact"}
    assert torch.equal(on_card(path, **item), on_cpu(path, **item))


def test_every_colour() -> None:
    """All values of luma with all of chroma in steps, against swscale."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (96 * 3 // 2, 160), dtype=torch.uint8, generator=generator)
    for number, matrix in swscale.MATRICES.items():
        for is_full in (False, True):
            frame = av.VideoFrame.from_ndarray(values.numpy(), "nv12").reformat(format="yuv420p")
            frame.colorspace, frame.color_range = number, 2 if is_full else 1
            video = SimpleNamespace(time_base=Fraction(1, 25), pixel_aspect=Fraction(1))
            expected = nvdec.ToRgb(video)(frame).pixels
            pixels = swscale.nv12_to_rgb(values, swscale.coefficients_of(matrix, is_full))
            assert torch.equal(pixels.permute(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (720, 1280, (336, 588)),
        (1080, 1920, (252, 448)),
        (360, 640, (476, 840)),  # larger
        (96, 160, (95, 161)),
        (96, 160, (96, 80)),  # one side alone
        (240, 320, (300, 160)),  # one larger, one smaller
        (2160, 3840, (112, 196)),
        (128, 128, (28, 28)),
    ],
)
def test_the_resize_on_a_card_gives_the_pixels_of_the_uint8_kernel(
    height: int, width: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    smooth = resize_frame(noise[:, :9, :9], (height, width))
    for frame in (noise, smooth, noise // 255 * 255):
        assert torch.equal(resize_by_products(frame, size), resize_frame(frame, size))


# --- left to the CPU -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_nvdec_does_not_take(request: pytest.FixtureRequest, card: CpuCard, name: str) -> None:
    assert_left_to_the_cpu(request.getfixturevalue("clips") / name, NOT_TAKEN[name])
    assert card.opened == []


@pytest.mark.parametrize(
    ("size", "codec", "reason"),
    [
        ((154, 131), "libvpx-vp9", "its width or height is odd"),
        ((128, 128), "libx265", "its frames are too small for NVDEC"),
        ((4160, 96), "libx264", "its frames are too large"),
    ],
)
def test_sizes(
    tmp_path: Path,
    card: CpuCard,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    codec: str,
    reason: str,
) -> None:
    monkeypatch.setattr(nvdec, "CODECS", CODECS)
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {"bf": "0"}
    width, height = size
    path = write_clip(
        tmp_path / "clip.mp4", codec=codec, width=width, height=height, seconds=0.5, options=options
    )
    assert_left_to_the_cpu(path, reason)


@pytest.mark.parametrize("packets", ["pair", "each"])
def test_fields(tmp_path: Path, card: CpuCard, packets: str) -> None:
    path = write_fields(tmp_path / "clip.ts", 8, packets=packets)
    assert_left_to_the_cpu(path, "it may be interlaced")


def test_interlaced_frames(tmp_path: Path, card: CpuCard) -> None:
    path = write_numbered(tmp_path / "avc.mp4", 8, options={"x264-params": "tff=1"})
    assert_left_to_the_cpu(path, "it may be interlaced")
    reader._card._logged.clear()
    options = {"x265-params": "interlace=tff:log-level=none"}
    path = write_numbered(tmp_path / "hevc.mkv", 8, codec="libx265", options=options)
    assert_left_to_the_cpu(path, "it is interlaced")


def test_a_stream_without_times(tmp_path: Path, card: CpuCard) -> None:
    path = write_raw_fields(tmp_path / "clip.h264", 8)
    assert_left_to_the_cpu(path, "its packets do not say their times")


def test_a_size_that_changes(tmp_path: Path, card: CpuCard) -> None:
    parts = [
        write_numbered(tmp_path / f"{side}.ts", 25, size=(side, side)).read_bytes()
        for side in (128, 192)
    ]
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(parts))
    assert_left_to_the_cpu(path, "its parameters change")


def test_a_damaged_file(tmp_path: Path, card: CpuCard) -> None:
    path = write_numbered(tmp_path / "clip.ts", 50)
    data = bytearray(path.read_bytes())
    del data[188 * 40 : 188 * 42]
    path.write_bytes(data)
    assert_left_to_the_cpu(path, "it is damaged")


def test_a_picture_that_needs_others_first(tmp_path: Path, card: CpuCard) -> None:
    options = {"x264-params": "intra-refresh=1:keyint=20"}
    path = write_numbered(tmp_path / "clip.mp4", 60, options=options)
    assert_left_to_the_cpu(path, "its first picture", video_start=1.7)


def test_a_later_picture_that_needs_others(tmp_path: Path, card: CpuCard) -> None:
    """Decoding starts at a key frame, and is to go on at what the file calls one."""
    options = {"x264-params": "intra-refresh=1:keyint=20"}
    path = write_numbered(tmp_path / "clip.mp4", 60, options=options)
    assert_left_to_the_cpu(path, "its key frames need other pictures", nframes=6)


class Wrong(CpuSession):
    """A session with a fault."""

    def __init__(self, card: CpuCard, codec: str, fault: Callable[[Pictures], Pictures]) -> None:
        super().__init__(card, codec)
        self._fault = fault

    def _pictures(self, packet: av.Packet | None) -> Pictures:
        return self._fault(super()._pictures(packet))


def fail(pictures: Pictures) -> Pictures:
    raise RuntimeError("CUDA error\nin a driver")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda p: [(t, x.roll(2, 1)) for t, x in p], "NVDEC shows its first picture differently"),
        (lambda p: [(t, x[:-3]) for t, x in p], "NVDEC shows its first picture differently"),
        (lambda p: [(t + 1, x) for t, x in p], "NVDEC gives its frames different times"),
        (lambda p: [(t, x) for t, x in p if t < 10], "NVDEC does not give all of its frames"),
        (fail, "RuntimeError: CUDA error; the CPU decodes the video"),
    ],
)
def test_a_decoder_with_a_fault(
    tmp_path: Path,
    card: CpuCard,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Pictures], Pictures],
    reason: str,
) -> None:
    monkeypatch.setattr(card, "open", lambda codec: Wrong(card, codec, fault))
    path = write_numbered(tmp_path / "clip.mkv", 60, first=0x5A5A)  # not one grey all over
    assert_left_to_the_cpu(path, reason)


def test_a_card_that_fails_is_given_up_and_says_so_once(
    tmp_path: Path,
    card: CpuCard,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(
        card, "open", lambda codec: card.opened.append(codec) or Wrong(card, codec, fail)
    )
    path = write_numbered(tmp_path / "clip.mp4", 20)
    with caplog.at_level(logging.WARNING):
        for _ in range(reader.MOST_FAILURES + 2):
            assert torch.equal(
                read_video({"video": str(path), "nframes": 4})[0], on_cpu(path, nframes=4)
            )
    assert len(card.opened) == reader.MOST_FAILURES
    assert [record.message for record in caplog.records] == [
        "NVDEC: RuntimeError: CUDA error; the CPU decodes the video",
        "NVDEC: RuntimeError: CUDA error; it is not tried again",
    ]


def test_a_video_that_cannot_be_read_says_why_as_ever(tmp_path: Path, card: CpuCard) -> None:
    path = write_numbered(tmp_path / "clip.mp4", 20)
    with pytest.raises(reader.VideoReadError, match="there is nothing from 5 s"):
        read_video({"video": str(path), "video_start": 5.0})


# --- the decoder that is kept ----------------------------------------------------------------


def test_videos_that_are_set_up_alike_share_a_decoder(tmp_path: Path, card: CpuCard) -> None:
    alike = [write_numbered(tmp_path / f"{n}.mp4", 30, first=100 * n) for n in range(3)]
    other = write_numbered(tmp_path / "other.mp4", 30, size=(192, 128))
    for path in (*alike, other, alike[0]):
        assert torch.equal(on_card(path, nframes=6), on_cpu(path, nframes=6))
    assert len(card.opened) == 3


def test_nothing_of_the_last_video_comes_out_with_the_next(tmp_path: Path, card: CpuCard) -> None:
    """A decoder that is stopped on the way holds pictures back."""
    for number in range(3):
        path = write_numbered(tmp_path / f"{number}.mp4", 30, first=1000 * number)
        item = {"video_end": 0.4, "nframes": 4, "resize": "exact"}
        assert torch.equal(on_card(path, **item), on_cpu(path, **item))
    assert len(card.opened) == 1


def test_a_stream_that_tells_its_parameters_late_gets_a_decoder_of_its_own() -> None:
    assert bitstream("h264", None).identity is None
    assert bitstream("vp9", None).identity == b""


# --- packets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_packets_are_those_of_ffmpegs_own_filter(
    request: pytest.FixtureRequest, codec: str
) -> None:
    with av.open(str(request.getfixturevalue("clips") / f"{codec}.mp4")) as container:
        stream = container.streams.video[0]
        ours = bitstream(codec, stream.codec_context.extradata)
        theirs = av.bitstream.BitStreamFilterContext(f"{codec}_mp4toannexb", stream)
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert ours.header
        for packet in packets:
            data = ours.packet(bytes(packet))
            (filtered,) = theirs.filter(packet)
            units = [unit.rstrip(b"\0") for unit in bytes(filtered).split(b"\0\0\1") if unit]
            assert all(unit in ours.header + data for unit in units)
            assert data.endswith(units[-1])


def test_a_packet_that_brings_other_parameters(request: pytest.FixtureRequest) -> None:
    sets = []
    for name in ("h264.mp4", "full_range.mp4"):
        with av.open(str(request.getfixturevalue("clips") / name)) as container:
            sets.append(
                bitstream("h264", container.streams.video[0].codec_context.extradata).header
            )
    stream = bitstream("h264", sets[0])
    assert stream.packet(sets[0]) == sets[0]
    with pytest.raises(Unsupported, match="its parameters change"):
        stream.packet(sets[1])


# --- the card --------------------------------------------------------------------------------


def test_without_a_card(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A decode process has no logging of its own: only a warning gets into the log of its job."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert use_decoder("auto") is False
        assert use_decoder("cpu") is False
    (told,) = caplog.messages
    assert told.startswith("NVDEC is not used: torch")
    with pytest.raises(UserError, match=r"vision.decoder: nvdec cannot be used here: torch .*CUDA"):
        use_decoder("nvdec")
    with pytest.raises(ValueError, match="'gpu' is not one of auto, cpu, nvdec"):
        use_decoder("gpu")


def test_what_is_asked_of_pynvvideocodec(tmp_path: Path) -> None:
    """Names and order of its calls, as version 2.0.4 has them (`help(CreateDecoder)`)."""

    class Frame:
        format = "NV12"

        def getPTS(self) -> int:
            return -3

        def __dlpack__(self, **given: object) -> object:
            return torch.arange(6, dtype=torch.uint8).view(3, 2).__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    class Decoder:
        def Decode(self, packet: SimpleNamespace) -> list[Frame]:
            fed.append(
                (packet.pts, bytes((ctypes.c_char * packet.bsl).from_address(packet.bsl_data)))
                if packet.bsl
                else None
            )
            return [Frame()]

    import ctypes

    fed: list = []
    asked: list[dict] = []
    library = SimpleNamespace(
        CreateDecoder=lambda **given: asked.append(given) or Decoder(),
        PacketData=lambda: SimpleNamespace(pts=0, bsl=0, bsl_data=0, decode_flag=0),
        VideoPacketFlag=SimpleNamespace(ENDOFSTREAM="1"),
        cudaVideoCodec=SimpleNamespace(HEVC="8"),
        Pixel_Format=SimpleNamespace(NV12="NV12"),
        PyNvVCExceptionUnsupported=LookupError,
    )
    session = nvdec.Session(library, "HEVC")
    assert asked == [{"gpuid": 0, "codec": "8", "usedevicememory": True}]
    ((stamp, picture),) = session.feed(b"\0\0\1packet", -7)
    assert (stamp, picture.tolist()) == (-3, [[0, 1], [2, 3], [4, 5]])
    session.flush()
    assert fed == [(-7, b"\0\0\1packet"), None]
    Frame.format = "P016"
    with pytest.raises(Unsupported, match="NVDEC gives P016"):
        session.flush()
