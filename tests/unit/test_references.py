"""Only the packets that sampled frames are made from reach the decoder, and no pixel changes."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video_pipeline.testing.clips import write_clip
from video_pipeline.video.container import Video
from video_pipeline.video.decode_pyav import decode_frames
from video_pipeline.video.errors import VideoReadError, noting_damage
from video_pipeline.video.references import references_of

WIDTH, HEIGHT, FRAMES = 160, 96, 100


def x265(parameters: str) -> dict:
    return {"codec": "libx265", "options": {"x265-params": f"log-level=none:{parameters}"}}


def svt(**options: str) -> dict:
    return {"codec": "libsvtav1", "options": {"preset": "10", **options}}


CLIPS = {  # The arguments of write_clip, and how much of the packets one frame in 25 may need.
    "default.mp4": (svt(), 0.3),
    "groups.mkv": (svt(g="32"), 0.3),
    "low_delay.webm": (svt(**{"svtav1-params": "pred-struct=1"}), 1.0),
    "hevc.mp4": (x265("keyint=250"), 0.8),
    "open.ts": (x265("open-gop=1:keyint=30:bframes=4"), 0.8),
    "closed.mkv": (x265("open-gop=0:keyint=30:b-pyramid=0:bframes=8"), 0.4),
    "layers.mp4": (x265("temporal-layers=1"), 1.0),
    "ten_bit.mp4": ({**x265("keyint=40"), "pixel_format": "yuv420p10le"}, 0.8),
    "aom.mp4": ({}, 0.5),  # PyAV does not bring this encoder.
}
AOM = ["-c:v", "libaom-av1", "-cpu-used", "8", "-g", "50"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("references")
    shape = {"width": WIDTH, "height": HEIGHT, "fps": 25, "seconds": FRAMES / 25}
    for name, (arguments, _) in CLIPS.items():
        if arguments:
            write_clip(folder / name, **shape, **arguments)
    if shutil.which("ffmpeg"):
        source = ["ffmpeg", "-v", "error", "-i", folder / "hevc.mp4"]
        subprocess.run([*source, *AOM, folder / "aom.mp4"], check=False)
    return folder


def read(video: Video, positions: list[int]) -> torch.Tensor:
    return torch.stack([shown.pixels for shown in decode_frames(video, positions)])


def all_frames(path: Path) -> torch.Tensor:
    """Those that the program ffmpeg shows, or if it is not installed those of all packets."""
    if not shutil.which("ffmpeg"):
        with Video(str(path)) as video:
            video.index.references = None
            return read(video, list(range(FRAMES)))
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vsync", "passthrough"]
    raw = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    ).stdout
    return torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3).copy())


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_ffmpeg(clips: Path, name: str, monkeypatch) -> None:
    if not (clips / name).exists():
        pytest.skip("no ffmpeg with this encoder is installed")
    expected = all_frames(clips / name)
    assert len(expected) == FRAMES
    with Video(str(clips / name)) as video:
        fed = []
        decode = video.decode
        monkeypatch.setattr(video, "decode", lambda packet: fed.append(packet) or decode(packet))
        for first, step in [(0, 25), (13, 25), (3, 12), (1, 3), (0, 1)]:
            positions = list(range(first, FRAMES, step))
            fed.clear()
            found = read(video, positions)
            assert len(fed) <= FRAMES + 1, "the file was decoded a second time"
            if step == 25:
                assert len(fed) <= CLIPS[name][1] * FRAMES + 1
            # Other versions of ffmpeg round colours otherwise.
            assert (found.int() - expected[positions].int()).abs().max() <= 1
            video.index.references, references = None, video.index.references
            assert torch.equal(found, read(video, positions))
            video.index.references = references


def outcome(path: Path, stamps: list[int], *, with_all: bool) -> torch.Tensor | None:
    """The frames at ``stamps``; None if they cannot be read."""
    try:
        with noting_damage(), Video(str(path)) as video:
            if with_all:
                video.index.references = None
            return read(video, [video.stamps.index(stamp) for stamp in stamps])
    except (VideoReadError, ValueError):
        return None


@pytest.mark.parametrize("name", ["default.mp4", "groups.mkv", "open.ts"])
def test_damage_gives_no_other_frames(clips: Path, tmp_path: Path, name: str) -> None:
    """A picture that damage has cost may not be taken for an older one that was left out."""
    data = (clips / name).read_bytes()
    with Video(str(clips / name)) as video:
        stamps = video.stamps[::30]
        whole = read(video, list(range(0, FRAMES, 30)))
    path = tmp_path / name
    for seed in range(20):
        generator, damaged = random.Random(seed), bytearray(data)
        for _ in range(generator.choice([1, 3])):
            damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        expected = outcome(path, stamps, with_all=True)
        found = outcome(path, stamps, with_all=False)
        if expected is None:  # The damage may lie in what is not needed.
            assert found is None or torch.equal(found, whole)
        else:
            assert found is not None
            assert torch.equal(found, expected)


def test_the_sequence_header_may_stand_in_the_box_of_the_file_alone(clips: Path) -> None:
    with av.open(str(clips / "default.mp4")) as container:
        box = container.streams.video[0].codec_context.extradata or b""
        packets = [(packet.pts, bytes(packet)) for packet in container.demux() if packet.size]
    sequence = packets[0][1][: 2 + packets[0][1][1]]
    assert sequence[0] >> 3 == 1
    needed = []
    for data, left_out in [(b"", b""), (box[:4] + sequence, sequence)]:
        references = references_of("av1", data)
        assert references is not None
        for stamp, packet in packets:
            references.add(stamp, packet.removeprefix(left_out))
        needed.append(references.needed({packets[50][0]}))
    assert needed[0] == needed[1]
    assert len(needed[0]) < 20


def test_a_damaged_header_needs_all_packets(clips: Path) -> None:
    references = references_of("av1", b"")
    assert references is not None
    references.add(0, b"\x32\x01")  # A frame without a sequence header before it.
    assert references.needed({0}) is None
    assert references_of("h264", b"") is None
