"""The video reader: right frames, right size, right errors."""

from __future__ import annotations

import base64
import copy
import ctypes
import io
import math
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange
from PIL import ExifTags, Image, features
from qwen_vl_utils import process_vision_info
from qwen_vl_utils import vision_process as qwen
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from transformers.image_utils import load_image
from video_pipeline.testing.clips import write_clip
from video_pipeline.video import decode_pyav, reader
from video_pipeline.video.access import read_image
from video_pipeline.video.container import Video
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.reader import probe, read_frame, read_video, register_reader
from video_pipeline.video.resize import frame_size, resize_frame

WIDTH, HEIGHT, FRAMES = 160, 96, 60


def write_frames(path: Path, times: list[int], time_base: Fraction, **options: str) -> Path:
    """An H.264 clip of moving noise whose frames are shown at ``times`` x ``time_base``."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8 + 40, 3), np.uint8)
    noise = noise.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = time_base
        for number, time in enumerate(times):
            picture = np.ascontiguousarray(noise[:, number : number + WIDTH])
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(source: Path, target: Path, first: int) -> Path:
    """Copy the packets from the key frame before frame ``first`` on; an edit list hides the frames
    before it."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(video=0) if packet.size]
        shift = sorted(packet.pts for packet in packets)[first]
        entry = max(
            number
            for number, packet in enumerate(packets)
            if packet.is_keyframe and packet.pts <= shift
        )
        for packet in packets[entry:]:
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = stream
            new.mux(packet)
    return target


def vfr_times() -> list[int]:
    generator = random.Random(0)
    times = [0]
    for _ in range(FRAMES - 1):
        times.append(times[-1] + generator.choice([10, 33, 40, 100, 500]))
    return times


GOP = {"g": "12", "bf": "3"}
MADE = {  # written by write_clip
    "h264.mp4": {"codec": "libx264", "options": GOP},
    "rotated.mp4": {"codec": "libx264", "rotation": -90},
    "upside_down.mp4": {"codec": "libx264", "rotation": 180},
    "full_range.mp4": {"codec": "libx264", "pixel_format": "yuvj420p"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=12"}},
    "ten_bit.mkv": {
        "codec": "libx265",
        "pixel_format": "yuv420p10le",
        "options": {"x265-params": "log-level=none"},
    },
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9_444.webm": {"codec": "libvpx-vp9", "pixel_format": "yuv444p", "width": 154},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": GOP},
    "h264.ts": {"codec": "libx264", "options": GOP},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": GOP},
    "odd_height.mkv": {"codec": "ffv1", "height": 95},
}
TIMED = {  # written by write_frames
    "variable_rate.mp4": (vfr_times(), Fraction(1, 1000), GOP),
    "late_start.mkv": ([n + 300 for n in range(FRAMES)], Fraction(1, 30), GOP),
    "intra_refresh.mp4": (
        list(range(FRAMES)),
        Fraction(1, 30),
        {"x264-params": "intra-refresh=1:keyint=20"},
    ),
    "b_pyramid.mp4": (
        list(range(FRAMES)),
        Fraction(1, 30),
        {"x264-params": "b-pyramid=normal:bframes=8:keyint=50"},
    ),
}
CLIPS = [*MADE, *TIMED, "edit_list.mp4"]
WIDE = {"x264-params": "sar=64/45"}
PIXELS = {  # written by write_clip: pixels that are not square
    "wide.mp4": {"options": WIDE},
    "wide_turned.mp4": {"options": WIDE, "rotation": 90},
    "tall.ts": {"codec": "mpeg4", "options": {"aspect": "8/9"}},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of CLIPS and PIXELS."""
    folder = tmp_path_factory.mktemp("clips")
    for name, arguments in (MADE | PIXELS).items():
        shape = {"width": WIDTH, "height": HEIGHT, "fps": 30, "seconds": FRAMES / 30}
        write_clip(folder / name, **shape | arguments)
    for name, (times, time_base, options) in TIMED.items():
        write_frames(folder / name, times, time_base, **options)
    cut(folder / "b_pyramid.mp4", folder / "edit_list.mp4", first=20)
    return folder


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader is registered; qwen-vl-utils and FFmpeg's log are as before when a test ends."""
    monkeypatch.setattr(qwen, "VIDEO_READER_BACKENDS", dict(qwen.VIDEO_READER_BACKENDS))
    monkeypatch.setattr(qwen, "get_video_reader_backend", qwen.get_video_reader_backend)
    monkeypatch.setattr(qwen, "fetch_image", qwen.fetch_image)
    monkeypatch.setattr(qwen.logger, "level", qwen.logger.level)
    register_reader()


def read(path: Path, patch_size: int = 14, **item: object) -> tuple[torch.Tensor, dict]:
    """Frames and metadata from ``process_vision_info``."""
    content = {"type": "video", "video": str(path), "image_patch_size": patch_size, **item}
    _, videos, kwargs = process_vision_info(
        [{"role": "user", "content": [content]}],
        image_patch_size=patch_size,
        return_video_kwargs=True,
        return_video_metadata=True,
    )
    assert kwargs == {"do_sample_frames": False}
    return videos[0]


def full_size(path: Path, **item: object) -> torch.Tensor:
    """The sampled frames as decoded."""
    return read_video({"video": str(path), "resize": "exact", **item})[0]


def all_frames(path: Path) -> torch.Tensor:
    """Every frame that PyAV decodes from the whole file, in the order it gives them."""
    with av.open(str(path)) as container:
        frames = container.decode(container.streams.best("video"))
        pictures = [
            np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames
        ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


# --- which frames ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("nframes", [6, 30, FRAMES])
@pytest.mark.parametrize("name", CLIPS)
def test_sampled_frames_are_those_of_a_plain_decode(clips: Path, name: str, nframes: int) -> None:
    expected = all_frames(clips / name)
    nframes = min(nframes, len(expected))
    frames, metadata, _ = read_video(
        {"video": str(clips / name), "resize": "exact", "nframes": nframes}
    )
    if name == "variable_rate.mp4":  # by time, see test_times
        times = np.array([stamp / 1000 for stamp in vfr_times()])
        wanted = np.linspace(0, times[-1], nframes)
        positions = torch.from_numpy(np.searchsorted(times, wanted + 1e-4, "right") - 1)
        seconds = np.array(metadata["frames_indices"]) / metadata["fps"]
        assert seconds == pytest.approx(times[positions], abs=1e-4)
    else:
        positions = torch.linspace(0, len(expected) - 1, nframes).round().long()
        assert metadata["frames_indices"] == positions.tolist()
        assert metadata["total_num_frames"] == len(expected)
    difference = (frames.int() - expected[positions].int()).abs()
    if name in ("ten_bit.mkv", "odd_height.mkv"):  # PyAV's own conversion moves the chroma a bit
        assert difference.float().mean() < 3
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("name", CLIPS)
def test_shortcuts_change_no_pixel(clips: Path, name: str) -> None:
    """Also where the plain decode above converts colours another way."""
    with Video(str(clips / name)) as video:
        positions = list(range(0, len(video.stamps), 7))
        plain = list(decode_pyav.decode(video, positions, shortcuts=False))
        for (_, shown), fast in zip(plain, reader.decode_frames(video, positions), strict=True):
            assert torch.equal(shown.pixels, fast.pixels)


@pytest.mark.parametrize("name", [name for name in CLIPS if name.endswith((".mp4", ".mkv"))])
def test_metadata_is_that_of_torchcodec(clips: Path, name: str) -> None:
    metadata = torchcodec_decoder(clips / name).metadata
    with Video(str(clips / name)) as video:
        assert len(video.stamps) == metadata.num_frames
        if name != "variable_rate.mp4":  # FFmpeg 5 and 8 disagree on how long its last frame lasts
            assert video.fps == metadata.average_fps


# torchcodec 0.12 seeks past the frame in MPEG streams, takes decoding times for display times in
# AVI, and is misled by the key frame marks of intra refresh
MISLEAD_TORCHCODEC = ("b_frames.avi", "h264.ts", "intra_refresh.mp4", "mpeg2.mpg", "mpeg2.ts")


@pytest.mark.parametrize("name", [name for name in CLIPS if name not in MISLEAD_TORCHCODEC])
def test_frames_are_those_of_torchcodec(clips: Path, name: str) -> None:
    decoder = torchcodec_decoder(clips / name)
    positions = list(range(0, len(decoder), 5))
    expected = decoder.get_frames_at(positions)
    with Video(str(clips / name)) as video:
        found = list(decode_pyav.decode(video, positions))
        seconds = [float(stamp * video.time_base) for stamp, _ in found]
        assert seconds == pytest.approx(expected.pts_seconds.tolist(), abs=1e-6)
        for (_, shown), picture in zip(found, expected.data, strict=True):
            assert torch.equal(shown.pixels.permute(2, 0, 1), picture)


def torchcodec_decoder(path: Path):
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError):
        pytest.skip("torchcodec does not load: it needs FFmpeg's shared libraries")

    return VideoDecoder(str(path), num_ffmpeg_threads=1)


def test_sampling_is_that_of_qwen_vl_utils(clips: Path) -> None:
    item = {"fps": 3.0, "min_frames": 4, "max_frames": 20, "video_start": 0.5, "video_end": 1.5}
    _, metadata, sample_fps = read_video({"video": str(clips / "h264.mp4"), **item})
    first, last, count = qwen.calculate_video_frame_range(item, FRAMES, 30.0)
    assert (first, last) == (15, 45)
    nframes = qwen.smart_nframes(item, total_frames=count, video_fps=30.0)
    assert metadata == {
        "fps": 30.0,
        "frames_indices": torch.linspace(15, 45, nframes).round().long().tolist(),
        "total_num_frames": count,
        "video_backend": "video_pipeline",
    }
    assert sample_fps == nframes / count * 30.0


def test_a_sparse_sample_decodes_only_what_it_needs(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Video(str(clips / "h264.mp4")) as video:
        fed = []
        read_packet = video.read
        monkeypatch.setattr(video, "read", lambda: fed.append(read_packet()) or fed[-1])
        frames = list(decode_pyav.decode(video, [0, 36, 48]))
    assert len(frames) == 3
    assert len(fed) < FRAMES / 2  # three groups of twelve, and none of them to its end


def test_one_decode_thread(clips: Path) -> None:
    with Video(str(clips / "h264.mp4")) as video:
        list(decode_pyav.decode(video, [0]))
        assert video.decoder.is_open
        assert video.decoder.thread_count == 1


def test_shortcuts_that_lead_to_another_frame_are_left(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    decode = decode_pyav.decode

    def astray(video: Video, positions: list[int], shortcuts: bool = True) -> Iterator:
        calls.append((len(positions), shortcuts))
        frames = list(decode(video, positions, shortcuts))
        yield frames[0]
        yield from frames[2:] if shortcuts else frames[1:]

    expected = full_size(clips / "vp9.webm", nframes=6)
    monkeypatch.setattr(decode_pyav, "decode", astray)
    assert torch.equal(full_size(clips / "vp9.webm", nframes=6), expected)
    assert calls == [(6, True), (5, False)]


# --- which size ------------------------------------------------------------------------------


def test_native_resize_is_that_of_transformers(clips: Path) -> None:
    from transformers.image_utils import PILImageResampling, SizeDict
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.video_processing_utils import BaseVideoProcessor

    frames, _ = read(clips / "h264.mp4", nframes=6, max_pixels=200 * 28 * 28)
    height, width = frames.shape[-2:]
    assert (height, width) != (HEIGHT, WIDTH)
    processor = Qwen2VLVideoProcessor()
    assert processor.resample == PILImageResampling.BICUBIC
    expected = BaseVideoProcessor.resize(
        processor,
        full_size(clips / "h264.mp4", nframes=6)[None],
        SizeDict(height=height, width=width),
        resample=processor.resample,
    )
    assert torch.equal(frames, expected[0].float())


@pytest.mark.parametrize("patch_size", [14, 16])
def test_exact_resize_is_that_of_qwen_vl_utils(clips: Path, patch_size: int) -> None:
    path = clips / "h264.mp4"
    frames, _ = read(path, patch_size, nframes=6, resize="exact")
    height, width = frames.shape[-2:]
    expected = transforms.functional.resize(
        full_size(path, nframes=6),
        [height, width],
        interpolation=InterpolationMode.BICUBIC,
        antialias=True,
    )
    assert torch.equal(frames, expected.float())
    native, _ = read(path, patch_size, nframes=6)
    assert native.shape == frames.shape
    assert not torch.equal(native, frames)  # else this test could not tell them apart
    assert (native - frames).abs().mean() < 0.5


def test_exact_is_what_stock_qwen_vl_utils_gives(clips: Path) -> None:
    torchcodec_decoder(clips / "h264.mp4")
    stock = {name: getattr(qwen, f"_read_video_{name}") for name in ("torchcodec", "torchvision")}
    for name in ("h264.mp4", "rotated.mp4", "ten_bit.mkv", "vp9.webm", "late_start.mkv"):
        item = {"fps": 4.0, "video_end": 1.5}
        ours, metadata = read(clips / name, resize="exact", **item)
        qwen.VIDEO_READER_BACKENDS["video_pipeline"] = stock["torchcodec"]
        theirs, stock_metadata = read(clips / name, **item)
        register_reader()
        assert torch.equal(ours, theirs), name
        assert metadata == {**stock_metadata, "video_backend": "video_pipeline"}


ITEMS = [
    {},
    {"max_pixels": 50 * 28 * 28, "min_pixels": 4 * 28 * 28},
    {"total_pixels": 3000 * 28 * 28, "min_pixels": 16 * 28 * 28},
    {"min_pixels": 400 * 32 * 32, "max_pixels": 500 * 32 * 32},
    {"resized_height": 100, "resized_width": 333},
]


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("item", ITEMS)
def test_frame_size_is_that_of_fetch_video(
    item: dict, patch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def resize(video: torch.Tensor, size: list[int], **_: object) -> torch.Tensor:
        sizes.append(tuple(size))
        return video

    monkeypatch.setattr(qwen.transforms.functional, "resize", resize)
    shapes = [(720, 1280, 4), (90, 60, 40), (33, 1000, 8), (500, 500, 300), (1080, 1920, 768)]
    for height, width, nframes in shapes:
        frames = torch.zeros(()).expand(nframes, 3, height, width)
        qwen.VIDEO_READER_BACKENDS["video_pipeline"] = lambda ele, frames=frames: (frames, {}, 1.0)
        qwen.fetch_video({"video": "", **item}, image_patch_size=patch_size)
        keys = {**item, "image_patch_size": patch_size}
        assert frame_size(keys, nframes, height, width) == sizes.pop()


@pytest.mark.parametrize("tokens", [9, 17, 60])
def test_a_resized_frame_is_not_resized_again(clips: Path, tokens: int) -> None:
    """With min_pixels equal to max_pixels, smart_resize moves its own result."""
    item = {"nframes": 4, "min_pixels": tokens * 28 * 28, "max_pixels": tokens * 28 * 28}
    messages = {"video": str(clips / "h264.mp4"), "image_patch_size": 14, **item}
    frames, _, _ = read_video(copy.deepcopy(messages))
    through, _ = read(clips / "h264.mp4", **item)
    exact, _ = read(clips / "h264.mp4", resize="exact", **item)
    assert through.shape == exact.shape
    assert torch.equal(through, frames.float())


def test_without_the_patch_size_fetch_video_resizes(clips: Path) -> None:
    frames, _, _ = read_video({"video": str(clips / "h264.mp4"), "nframes": 4})
    assert frames.shape == (4, 3, HEIGHT, WIDTH)
    assert frames.dtype == torch.uint8


def test_a_tensor_of_whole_frames(clips: Path) -> None:
    frames, _ = read(clips / "rotated.mp4", nframes=4)
    assert frames.dtype == torch.float32
    assert frames.is_contiguous()
    assert frames.shape[2] > frames.shape[3]  # shown upright
    assert torch.equal(frames, frames.to(torch.uint8).float())


# --- as it is shown --------------------------------------------------------------------------

ORIENTATIONS = {  # a stored point (x, y) is shown at (a x + c y, b x + d y)
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "half a turn": (-1, 0, 0, -1),
    "a quarter turn": (0, 1, -1, 0),
    "three quarter turns": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed and turned": (0, -1, -1, 0),
    "as it is": (1, 0, 0, 1),
    "nothing at all": (0, 0, 0, 0),
}


def set_matrix(source: Path, target: Path, a: float, b: float, c: float, d: float) -> Path:
    """A copy of an MP4 with another display matrix."""
    data = source.read_bytes()
    place = data.index(struct.pack(">i", 65536), data.index(b"tkhd") + 40)
    numbers = (round(65536 * number) for number in (a, b, c, d))
    matrix = struct.pack(">ii4xii4x8xi", *numbers, 1 << 30)
    target.write_bytes(data[:place] + matrix + data[place + 36 :])
    return target


def by_definition(pixels: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """A picture, each pixel put where a display matrix says."""
    y, x = np.indices(pixels.shape[:2])
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    shown = np.zeros((down.max() + 1, across.max() + 1, 3), np.uint8)
    shown[down, across] = pixels
    return shown


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("clip", ["h264.mp4", "hevc.mp4"])
def test_a_video_is_shown_as_its_matrix_says(
    clips: Path, tmp_path: Path, clip: str, name: str
) -> None:
    matrix = ORIENTATIONS[name]
    path = set_matrix(clips / clip, tmp_path / "clip.mp4", *matrix)
    stored = full_size(clips / clip, nframes=4).permute(0, 2, 3, 1).numpy()
    expected = [by_definition(f, *(matrix if any(matrix) else (1, 0, 0, 1))) for f in stored]
    shown = full_size(path, nframes=4).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown, np.stack(expected))
    info = probe(str(path))
    assert (info.height, info.width) == shown.shape[1:3]


@pytest.mark.parametrize("degrees", [45, 181, 10])
@pytest.mark.parametrize("mirror", [1, -1])
def test_any_angle_turns_within_the_frame(
    clips: Path, tmp_path: Path, degrees: int, mirror: int
) -> None:
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    path = tmp_path / "clip.mp4"
    set_matrix(clips / "h264.mp4", path, cosine, sine, -sine * mirror, cosine * mirror)
    (shown,) = full_size(path, nframes=2)[:1]
    assert shown.shape == (3, HEIGHT, WIDTH)
    if degrees != 181:
        assert shown[:, 0, 0].sum() < 60  # black corners
    if shutil.which("ffmpeg"):
        assert torch.equal(shown.permute(1, 2, 0), shown_by_ffmpeg(path))


@pytest.mark.parametrize("name", [*CLIPS, "full_range.webm"])
def test_the_first_frame_is_that_of_ffmpeg(clips: Path, tmp_path: Path, name: str) -> None:
    """Its colours, too: the range of a WebM is told beside its pixel format."""
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    path = full_range_webm(tmp_path / name) if name == "full_range.webm" else clips / name
    shown = torch.from_numpy(np.array(read_frame(str(path))))
    expected = shown_by_ffmpeg(path)
    assert shown.shape == expected.shape
    assert (shown.int() - expected.int()).abs().max() <= 1  # other versions round otherwise


def shown_by_ffmpeg(path: Path) -> torch.Tensor:
    """The first frame, as the program shows it."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-pix_fmt", "rgb24"]
    done = subprocess.run(
        [*command, "-f", "image2pipe", "-c:v", "ppm", "-"], capture_output=True, check=True
    )
    return torch.from_numpy(np.array(Image.open(io.BytesIO(done.stdout))))


def full_range_webm(path: Path) -> Path:
    """White and black on grey in all 256 levels of brightness."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.color_range = ColorRange.JPEG
        picture = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        picture[:, :40], picture[:, -40:] = 250, 5
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame = frame.reformat(format="yuv420p", dst_color_range=ColorRange.JPEG)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_a_full_range_of_brightness_stays(tmp_path: Path) -> None:
    shown = full_size(full_range_webm(tmp_path / "clip.webm"), nframes=2)[0].float()
    levels = [
        shown[:, :, columns].mean() for columns in (slice(0, 30), slice(60, 90), slice(-30, None))
    ]
    assert levels == pytest.approx([250, 128, 5], abs=3)


def test_colours_that_cannot_be_converted_are_an_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", options={"x264-params": "colormatrix=YCgCo"})
    with pytest.raises(VideoReadError, match=r"^its colours cannot be converted: .*ycgco"):
        full_size(path, nframes=2)


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [("wide.mp4", 228, 96), ("wide_turned.mp4", 96, 228), ("tall.ts", 160, 108)],
)
def test_pixels_are_shown_square(clips: Path, name: str, width: int, height: int) -> None:
    """160 x 96 stored pixels of 64:45 or 8:9. No line of them is lost: one side grows."""
    info = probe(str(clips / name))
    assert (info.width, info.height) == (width, height)
    assert full_size(clips / name, nframes=2).shape == (2, 3, height, width)
    assert read_frame(str(clips / name)).size == (width, height)


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("kind", ["native", "exact"])
def test_frames_with_other_pixels_are_resized_once(clips: Path, name: str, kind: str) -> None:
    with Video(str(clips / name)) as video:
        stored = [shown.pixels.permute(2, 0, 1) for shown in reader.decode_frames(video, [0, 59])]
    shown_height, shown_width = probe(str(clips / name)).height, probe(str(clips / name)).width
    size = frame_size({"image_patch_size": 14, "nframes": 2}, 2, shown_height, shown_width)
    assert size != frame_size({"image_patch_size": 14}, 2, *stored[0].shape[1:])
    if kind == "native":
        expected = torch.stack([resize_frame(frame, size) for frame in stored]).float()
    else:
        expected = transforms.functional.resize(
            torch.stack(stored), list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
        ).float()
    frames, _ = read(clips / name, nframes=2, resize=kind)
    assert torch.equal(frames, expected)


@pytest.fixture(scope="module")
def two_to_one(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MP4 whose container and stream both say that pixels are 2:1."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    options = {**GOP, "aspect": "2/1"}
    write_clip(path, width=WIDTH, height=HEIGHT, seconds=0.5, options=options)
    return path.read_bytes()


def set_ratio(data: bytes, target: Path, across: int, down: int) -> Path:
    """A copy of an MP4 whose container says that pixels are ``across`` : ``down``."""
    place = data.index(b"pasp") + 4
    assert data[place : place + 8] == struct.pack(">II", 2, 1)
    target.write_bytes(data[:place] + struct.pack(">II", across, down) + data[place + 8 :])
    return target


@pytest.mark.parametrize(
    ("ratio", "width", "height"),
    [((4, 3), 213, 96), ((102, 100), 163, 96), ((100, 102), 160, 98), ((10, 1), 1600, 96)],
)
def test_the_container_decides_how_wide_pixels_are(
    tmp_path: Path, two_to_one: bytes, ratio: tuple[int, int], width: int, height: int
) -> None:
    info = probe(str(set_ratio(two_to_one, tmp_path / "clip.mp4", *ratio)))
    assert (info.width, info.height) == (width, height)


@pytest.mark.parametrize("ratio", [(101, 100), (100, 101), (11, 1), (1, 11), (1, 1000)])
def test_a_ratio_of_no_consequence_changes_nothing(
    tmp_path: Path, two_to_one: bytes, ratio: tuple[int, int]
) -> None:
    """It is within 1 %, or cannot be meant."""
    path = set_ratio(two_to_one, tmp_path / "clip.mp4", *ratio)
    square = set_ratio(two_to_one, tmp_path / "square.mp4", 1, 1)
    assert full_size(path, nframes=2).shape == (2, 3, HEIGHT, WIDTH)
    assert torch.equal(read(path, nframes=6)[0], read(square, nframes=6)[0])


CHANGES = {
    "size": ("mpeg2video", (160, 96, "yuv420p"), (320, 64, "yuv420p")),
    "turn": ("mpeg2video", (160, 96, "yuv420p"), (96, 160, "yuv420p")),
    "chroma": ("mpeg2video", (160, 96, "yuv420p"), (160, 96, "yuv422p")),
    "depth": ("libx264", (160, 96, "yuv420p"), (160, 96, "yuv420p10le")),
    "range": ("libx264", (160, 96, "yuv420p"), (160, 96, "yuvj420p")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_inside_a_video_is_followed(tmp_path: Path, change: str) -> None:
    """What comes after it is shown in the size of the first frame, else as it is shown alone."""
    codec, *shapes = CHANGES[change]
    late = codec == "mpeg2video"  # whose first packet is decoded one frame ahead of the others
    parts, alone = [], []
    for number, (width, height, pixel_format) in enumerate(shapes):
        part = tmp_path / f"{number}.ts"
        with av.open(str(part), "w") as container:
            stream = container.add_stream(codec, rate=30, options={"bf": "0"})
            stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
            shade = np.linspace(5, 250, width, dtype=np.uint8)[None, :, None]
            for time in range(30 * number, 30 * number + 30):
                picture = shade.repeat(height, 0).repeat(3, 2)
                picture[: height // 2, :, number] = 4 * time
                frame = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame.pts, frame.time_base = time + late * number, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(part.read_bytes())
        alone += [resize_frame(frame, (96, 160)) for frame in full_size(part, nframes=30)]
    (tmp_path / "both.ts").write_bytes(b"".join(parts))
    frames = full_size(tmp_path / "both.ts", nframes=60)
    assert frames.shape == (60, 3, 96, 160)
    for number in (0, 20, 40, 59):
        assert torch.equal(frames[number], alone[number])
    resized, _ = read(tmp_path / "both.ts", nframes=20)
    assert resized.shape[2:] == frame_size({"image_patch_size": 14}, 20, 96, 160)


# --- images ----------------------------------------------------------------------------------

MODES = {  # what each mode of Pillow can be stored in
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tiff": ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P"),
}


@pytest.mark.parametrize(("suffix", "mode"), [(s, mode) for s in MODES for mode in MODES[s]])
def test_images_of_every_mode_are_those_of_transformers(
    tmp_path: Path, suffix: str, mode: str
) -> None:
    noise = np.random.default_rng(0)
    if mode in ("I", "F", "I;16"):
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        image = Image.fromarray(noise.integers(0, 256, (20, 31)).astype(kind))
    elif mode in ("CMYK", "RGBX", "YCbCr", "LAB"):
        bands = len(Image.new(mode, (1, 1)).getbands())
        values = noise.integers(0, 256, 20 * 31 * bands).astype(np.uint8).tobytes()
        image = Image.frombytes(mode, (31, 20), values)
    else:
        image = Image.fromarray(noise.integers(0, 256, (20, 31, 4), np.uint8)).convert(mode)
    assert image.mode == mode
    options = {"transparency": 3} if (suffix, mode) == ("png", "P") else {}
    same_as_load_image(tmp_path / f"image.{suffix}", image, **options)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_grey_values_beyond_white_are_refused(tmp_path: Path, kind: type) -> None:
    """Depth, heat and the like: Pillow makes everything above 255 white."""
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.linspace(0, 60000, 620).reshape(20, 31).astype(kind)).save(path)
    with pytest.raises(VideoReadError, match="grey values up to 60000: save it with 8 bits"):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    same_as_load_image(tmp_path / f"image.{suffix}", Image.fromarray(picture), exif=exif)


def same_as_load_image(path: Path, image: Image.Image, **options: object) -> None:
    """By its path, as a ``data:`` address and as an object of Pillow, and measured."""
    image.save(path, **options)
    expected = load_image(str(path))
    kind = Image.MIME[Image.open(path).format]
    address = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    for named in (str(path), address):
        assert np.array_equal(np.asarray(read_image(named)), np.asarray(expected))
        assert read_image(named, with_pixels=False).size == expected.size
    size = {"resized_height": 280, "resized_width": 420}
    seen = [qwen.fetch_image({"image": image, **size}) for image in (str(path), Image.open(path))]
    as_expected = qwen.fetch_image({"image": expected, **size})
    assert all(np.array_equal(np.asarray(one), np.asarray(as_expected)) for one in seen)


def test_measured_images_of_a_folder_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for number in (1, 2):
        Image.new("RGB", (200, 100)).save(tmp_path / f"{number}.jpg", exif=exif)
    item = {"video": [str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg")]}
    frames = qwen.fetch_video(item)
    assert frames.shape[2] > frames.shape[3]
    with reader.measuring():
        assert qwen.fetch_video(item).shape == frames.shape


# --- measuring -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "item",
    [
        {"fps": 2.0},
        {"fps": 7.3, "max_frames": 10, "min_pixels": 3136, "total_pixels": 40 * 28 * 28},
        {"nframes": 6, "patch_size": 16},
        {"fps": 4.0, "resize": "exact", "min_pixels": 3136, "total_pixels": 40 * 28 * 28},
        {"fps": 5.0, "video_start": 0.7, "video_end": 1.6},
        {"keyframes": True},
        {"fps": 2.0, "min_pixels": 300 * 28 * 28, "max_pixels": 301 * 28 * 28},
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", [*CLIPS, *PIXELS])
def test_measured_is_as_read(clips: Path, name: str, item: dict) -> None:
    frames, metadata = read(clips / name, **item)
    with reader.measuring():
        sizes, measured = read(clips / name, **item)
    assert sizes.is_meta
    assert not frames.is_meta
    assert sizes.shape == frames.shape
    assert measured == metadata
    assert measured.info == probe(str(clips / name))
    assert not read(clips / name, **item)[0].is_meta  # it is over


def test_measuring_decodes_one_frame(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    decode = reader.decode_frames

    def counted(video: Video, positions: list[int]) -> Iterator[torch.Tensor]:
        decoded.append(list(positions))
        return decode(video, positions)

    monkeypatch.setattr(reader, "decode_frames", counted)
    path = clips / "h264.mp4"
    with Video(str(path)) as video:
        keyframes = video.keyframes
    with reader.measuring():
        read(path, fps=8.0)
        read(path, fps=8.0, video_start=1.1)
    assert decoded == [[0], [max(key for key in keyframes if key <= 33)]]
    assert decoded[1] != [0]


def test_measured_images_are_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (123, 457, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = {"type": "image", "image": str(path), "max_pixels": 40 * 28 * 28}
    messages = [{"role": "user", "content": [content]}]
    (seen,), _ = process_vision_info(messages)
    path.write_bytes(path.read_bytes()[:200])  # the header and little else
    with reader.measuring():
        (measured,), _ = process_vision_info(messages)
    assert measured.size == seen.size
    with pytest.raises(VideoReadError, match="truncated"):
        process_vision_info(messages)


# --- probe -----------------------------------------------------------------------------------


def test_probe(clips: Path) -> None:
    path = clips / "h264.mp4"
    assert probe(str(path)) == reader.VideoInfo(
        frames=FRAMES,
        fps=30.0,
        duration=2.0,
        width=WIDTH,
        height=HEIGHT,
        codec="h264",
        num_bytes=path.stat().st_size,
    )
    turned = probe(f"file://{clips / 'rotated.mp4'}")
    assert (turned.width, turned.height) == (HEIGHT, WIDTH)
    late = probe(str(clips / "late_start.mkv"))
    assert late.duration == pytest.approx(2.0)
    assert probe(str(clips / "vp9.webm")).codec == "vp9"


# --- errors ----------------------------------------------------------------------------------


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "video.mp4"
    match kind:
        case "missing":
            pass
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "text":
            path = path.with_suffix(".bin")
            path.write_text("not a video\n" * 100)
        case "noise":
            path = path.with_suffix(".bin")
            path.write_bytes(random.Random(0).randbytes(5000))
        case "no index":
            write_clip(path)
            path.write_bytes(path.read_bytes()[:5000])
        case "one frame":
            write_clip(path, seconds=0.01)
        case "audio":
            with av.open(str(path), "w") as container:
                stream = container.add_stream("aac", rate=16000, layout="mono")
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
                )
                frame.rate = 16000
                container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        case "truncated" | "damaged":
            write_clip(folder / "whole.mp4", seconds=2.0)
            with (
                av.open(str(folder / "whole.mp4")) as old,
                av.open(str(path), "w", container_options={"movflags": "faststart"}) as new,
            ):
                stream = new.add_stream_from_template(old.streams.video[0])
                for packet in old.demux(video=0):
                    packet.stream = stream
                    if packet.size:
                        new.mux(packet)
            data = path.read_bytes()
            if kind == "truncated":
                path.write_bytes(data[: len(data) * 2 // 3])
            else:
                middle = len(data) * 2 // 3
                path.write_bytes(data[:middle] + b"\xff" * 4000 + data[middle + 4000 :])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"No such file or directory: /.+/video\.mp4"),
        ("empty", r"file is empty \(0 bytes\)"),
        ("folder", r"is a directory, not a file"),
        ("pipe", r"not a regular file"),
        ("text", r"not a video but a text file"),
        ("noise", r"Invalid data found when processing input \(InvalidDataError\)"),
        ("no index", r"moov atom not found \(InvalidDataError\)"),
        ("one frame", r"video has 1 frame, at least 2 are needed"),
        ("audio", r"holds sound only, no video"),
        ("truncated", r"the file is truncated: \d+ of 48 frames are there"),
        (
            "damaged",
            r"only \d+ of 4 sampled frames could be decoded; the one at \d+\.\d+ s could not; "
            r"damaged near frame \d+ of 48: .+ \(InvalidDataError\)",
        ),
    ],
)
def test_the_true_error_comes_out(
    kind: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path = bad_file(kind, tmp_path)
    with pytest.raises(VideoReadError, match=f"^{message}$") as caught:
        read(path)
    assert kind == "missing" or str(tmp_path) not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"video_start": 1.5, "video_end": 1.2}, "there is nothing from 1.5 s to 1.2 s"),
        ({"video_start": 50.0}, "there is nothing from 50 s to 2 s: it lasts 2 s"),
        ({"video_end": -1.0}, "there is nothing from 0 s to -1 s"),
        ({"video_start": "1"}, "video_start: '1' is not a number of seconds"),
        ({"nframes": 100}, "cannot sample 60 frames at 30 fps: nframes should in interval"),
        ({"nframes": 4, "fps": 2.0}, "Only accept either `fps` or `nframes`"),
        ({"resize": "nativ"}, "resize: 'nativ' is not one of native, exact"),
    ],
)
def test_a_bad_item_is_named(clips: Path, item: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(clips / "h264.mp4", **item)


def test_huge_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "clip.mp4", width=320, height=240)
    monkeypatch.setattr("video_pipeline.video.demuxer.MAX_FRAME_PIXELS", 320 * 240 - 1)
    with pytest.raises(VideoReadError, match="frames of 320x240 pixels are too large"):
        probe(str(tmp_path / "clip.mp4"))


def test_huge_frames_behind_a_small_header_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.avi", codec="mjpeg", pixel_format="yuvj420p", width=320, height=240)
    data = (tmp_path / "clip.avi").read_bytes()
    small = (240).to_bytes(2, "big") + (320).to_bytes(2, "big")
    huge = (16000).to_bytes(2, "big") * 2
    assert small in data
    (tmp_path / "clip.avi").write_bytes(data.replace(small, huge))
    with pytest.raises(VideoReadError, match="damaged near frame"):
        read(tmp_path / "clip.avi")


def test_registering_again_changes_nothing(clips: Path, capfd: pytest.CaptureFixture) -> None:
    before = dict(qwen.VIDEO_READER_BACKENDS)
    register_reader()
    assert before == qwen.VIDEO_READER_BACKENDS
    frames, _ = read(clips / "h264.mp4", fps=60.0)  # more than there are: qwen-vl-utils would warn
    assert len(frames) == FRAMES
    assert capfd.readouterr().err == ""


NEW_PAGES = """
import resource, torch
from video_pipeline.video.reader import register_reader
register_reader()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 26, dtype=torch.uint8)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
def test_memory_is_kept_for_the_next_video() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("not glibc")
    scripts = Path(reader.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", NEW_PAGES],
        env={**os.environ, "PYTHONPATH": str(scripts)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = map(int, done.stdout.split())
    assert min(others) < first / 10  # a small block in the way can cost one of them its place


def test_errors_of_ffmpeg_do_not_leak(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FFmpegError(1, "Operation not permitted", "/secret/path")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(VideoReadError, match=r"^Operation not permitted \(FFmpegError\)$"):
        probe(str(clips / "h264.mp4"))
