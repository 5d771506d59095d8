"""Bad videos of every kind, read in real decode processes: a record each, whatever they are."""

from __future__ import annotations

import asyncio
import os
import random
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from helpers import Run
from PIL import Image
from video_pipeline.common.files import Seal
from video_pipeline.config import load_config
from video_pipeline.decode.errors import SampleError
from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.pool import DecodePool
from video_pipeline.decode.preparing import READER, Prepared, WorkerSpec
from video_pipeline.engine.simulated import SimulatedPreparer
from video_pipeline.infer.infer import infer
from video_pipeline.output.consolidation import consolidate
from video_pipeline.run.layout import Layout
from video_pipeline.split.split import split
from video_pipeline.testing.clips import write_clip
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.reader import probe, register_reader

pytestmark = pytest.mark.slow

Results = dict[str, Prepared | SampleError]


@pytest.fixture
def read(here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Results]:
    """Reads videos as a job does, with 4 small frames of each; gives what came of each path.
    Nothing is left in the folder of shared memory, nor in that for temporary files."""

    def run(paths: list[str], timeout: float = 300.0, **data: object) -> Results:
        here.write_samples({"id": i, "path": path} for i, path in enumerate(paths))
        here.configure(
            data={"num_shards": 1, **data},
            run={"task": "describe", "plugins": []},
            vision={"nframes": 4, "min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28},
        )
        config = load_config(here.folder / "my.yaml")
        layout = Layout.of(config, 1)
        split(config, layout)
        shared, temporary = tmp_path / "shared", tmp_path / "temporary"
        shared.mkdir()
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        chunk = layout.chunk(0)
        spec = WorkerSpec(config, chunk, Seal.of(chunk), "simulated", SimulatedPreparer(), shared)
        pool = DecodePool(ForkServer(READER), spec, 2, timeout)

        async def all_samples() -> list:
            jobs = [pool.prepare(position, [""]) for position in range(len(paths))]
            return await asyncio.gather(*jobs, return_exceptions=True)

        try:
            results = asyncio.run(all_samples())
        finally:
            pool.stop()
        assert list(shared.iterdir()) == []
        assert list(temporary.glob("tmp*")) == []  # torch may keep a cache there
        assert all(isinstance(result, Prepared | SampleError) for result in results), results
        return dict(zip(paths, results, strict=True))

    return run


def message(result: Prepared | SampleError) -> str:
    """What the record says, ``ok`` if it is no error."""
    return f"{result.stage}: {result}" if isinstance(result, SampleError) else "ok"


# --- the kinds ---------------------------------------------------------------------------------


def write_frames(path: Path, times: list[int], width: int = 64, codec: str = "libx264") -> Path:
    """A clip of gray frames at the given twenty-fifths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width = stream.height = width
        stream.pix_fmt = {"gif": "rgb8", "ffv1": "yuv444p"}.get(codec, "yuv420p")
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((width, width, 3), time, np.uint8), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_still(path: Path) -> Path:
    """Frames that all have the same time, so the video lasts no time at all."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        for packet in stream.encode(frame):
            for _ in range(6):
                packet.pts = packet.dts = packet.duration = 0
                packet.stream = stream
                container.mux(packet)
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        silence = np.zeros((1, 16000), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def claim(source: Path, target: Path, width: int, height: int) -> Path:
    """A copy of a 64 x 64 MP4 whose header claims another size."""
    data = source.read_bytes()
    place = data.index(b"avc1", data.index(b"stsd")) + 28
    assert data[place : place + 4] == bytes([0, 64, 0, 64])
    size = width.to_bytes(2, "big") + height.to_bytes(2, "big")
    target.write_bytes(data[:place] + size + data[place + 4 :])
    return target


def test_every_kind_has_a_record(read: Callable[..., Results], tmp_path: Path) -> None:
    good = write_clip(tmp_path / "good.mp4", width=64, height=64)
    data = good.read_bytes()
    gif = write_frames(tmp_path / "good.gif", list(range(8)), codec="gif").read_bytes()
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    (tmp_path / "link.mp4").symlink_to(good)
    for name, content in {
        "empty.mp4": b"",
        "zeros.mp4": bytes(100_000),
        "text.mp4": b"not a video\n" * 1000,
        "truncated.mp4": data[: len(data) // 2],
        "mp4.avi": data,
        "mp4.txt": data,
        "mp4.jpg": data,
        "mp4": data,
        "list.mp4": b"ffconcat version 1.0\nfile good.mp4\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    write_sound(tmp_path / "sound.mp4")
    write_frames(tmp_path / "one.mp4", [0])
    write_still(tmp_path / "still.mkv")
    write_frames(tmp_path / "one_pixel.mkv", list(range(8)), width=1, codec="ffv1")
    claim(good, tmp_path / "claim.mp4", 16384, 16384)
    (tmp_path / "16k.gif").write_bytes(b"GIF89a" + struct.pack("<HH", 16384, 16384) + gif[10:])

    expected = {
        **dict.fromkeys(("good.mp4", "good.gif", "link.mp4"), "ok"),
        **dict.fromkeys(("mp4.avi", "mp4.txt", "mp4.jpg", "mp4"), "ok"),
        "folder.mp4": "read: is a directory, not a file",
        "pipe.mp4": "read: not a regular file",
        "/dev/zero": "read: not a regular file",
        "/dev/stdin/x": "read: ",  # not a directory, or not there, as the machine has it
        "nowhere.mp4": "read: No such file or directory",
        "dangling.mp4": "read: No such file or directory",
        "circle.mp4": "read: Too many levels of symbolic links",
        "a" * 300: "read: File name too long",
        "nul\0.mp4": "read: its path holds a NUL character",
        "empty.mp4": "read: file is empty (0 bytes)",
        "zeros.mp4": "read: moov atom not found",
        "text.mp4": "read: not a video but a text file",
        "truncated.mp4": "read: moov atom not found",
        "list.mp4": "read: not a video in one file",
        "sound.mp4": "read: holds sound only, no video",
        "one.mp4": "read: video has 1 frame, at least 2 are needed",
        "still.mkv": "ok",
        "one_pixel.mkv": "ok",
        "16k.gif": "read: only 0 of 4 sampled frames could be decoded; the one at 0.000 s could "
        "not; damaged near frame 1 of 8: Picture size 16384x16384 is invalid",
        "claim.mp4": "ok",  # the stream itself knows better
    }
    paths = {name: name if name.startswith("/") else f"{tmp_path}/{name}" for name in expected}
    results = read([paths[name] for name in expected])
    said = {name: message(results[paths[name]]) for name in expected}
    wrong = {name: text for name, text in said.items() if not text.startswith(expected[name])}
    assert not wrong


def test_damage_reaches_the_record(here: Run, tmp_path: Path) -> None:
    """Noise in the middle of a recording, between the frames that are sampled, and a WebM of which
    only the beginning is there: the frames are sampled from that."""
    whole = write_clip(tmp_path / "whole.ts", codec="mpeg2video", seconds=4.0)
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = random.Random(0).randbytes(2000)
    (tmp_path / "damaged.ts").write_bytes(data)
    webm = write_clip(tmp_path / "whole.webm", codec="libvpx-vp9", seconds=4.0)
    (tmp_path / "begin.webm").write_bytes(webm.read_bytes()[:10_000])
    here.write_samples(
        {"id": name, "path": str(tmp_path / name)}
        for name in ("whole.ts", "damaged.ts", "begin.webm")
    )
    here.configure(
        data={"num_shards": 1},
        run={"task": "describe", "plugins": []},
        vision={"nframes": 2, "min_pixels": 28 * 28, "max_pixels": 16 * 28 * 28},
    )
    config = load_config(here.folder / "my.yaml")
    layout = Layout.of(config, 1)
    split(config, layout)
    infer(config, layout, 0, 1)
    consolidate(config, layout)
    good, bad, begin = here.records()
    assert {record["__status"] for record in (good, bad, begin)} == {"ok"}
    assert "damaged" not in good
    assert bad["damaged"] is begin["damaged"] is True
    summary = here.summary()
    assert summary["samples"]["damaged"] == 2
    assert 4 + 4 < 3600 * summary["cost"]["video_hours"] < 4 + 4 + 2


def write_sound_as(path: Path, codec: str, *, cover: bool = False) -> Path:
    """A tone, with a picture on its cover."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        tone = np.sin(np.arange(44100) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.rate = 44100
        resampler = av.AudioResampler(
            stream.codec_context.format, "mono", 44100, stream.codec_context.frame_size or 1024
        )
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(piece))
        if cover:
            black = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            container.mux([*picture.encode(black), *picture.encode(None)])
    return path


SOUNDS = {
    "mp3": "libmp3lame",
    "wav": "pcm_s16le",
    "flac": "flac",
    "m4a": "aac",
    "aac": "aac",
    "ac3": "ac3",
    "aiff": "pcm_s16be",
    "mka": "aac",
    "w64": "pcm_s16le",
}


SOUND_ONLY = r"^holds sound only, no video$"


@pytest.mark.parametrize("suffix", SOUNDS)
def test_sound_is_called_sound(tmp_path: Path, suffix: str) -> None:
    codec = SOUNDS[suffix]
    path = write_sound_as(tmp_path / f"sound.{suffix}", codec)
    with pytest.raises(VideoReadError, match=SOUND_ONLY):
        probe(str(path))
    path.rename(tmp_path / "video.mp4")
    with pytest.raises(VideoReadError, match=SOUND_ONLY):
        probe(str(tmp_path / "video.mp4"))


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    write_sound_as(tmp_path / "sound.mp4", "aac", cover=True)
    with pytest.raises(VideoReadError, match=SOUND_ONLY):
        probe(str(tmp_path / "sound.mp4"))


@pytest.mark.parametrize("name", ["image.{}", "video.mp4"])
@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "PNG", "TIFF", "BMP", "PPM"])
def test_an_image_is_called_an_image(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name.format(kind.lower())
    image = Image.effect_noise((64, 64), 90)
    image.save(path, kind)
    with pytest.raises(VideoReadError, match=rf"^an image \({kind}\), .*run.dataset: image"):
        probe(str(path))
    if kind == "WEBP":  # FFmpeg reads no moving one, either
        image.save(path, kind, save_all=True, append_images=[image.rotate(90)])
        with pytest.raises(VideoReadError, match=rf"^an image \({kind}\)"):
            probe(str(path))


OTHERS = {
    "a web page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\n",
    "an archive or": b"PK\x03\x04" + bytes(100),
    "a PDF document": b"%PDF-1.4\n" + bytes(100),
    "a text file": b'{"error": "not found \xc3\xbc"}\n',
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["video.mp4", "video", "video.webm"])
def test_other_files_are_called_what_they_are(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(OTHERS[kind])
    with pytest.raises(VideoReadError, match=f"^not a video but {kind}"):
        probe(str(tmp_path / name))


def test_subtitles_are_text(tmp_path: Path) -> None:
    """FFmpeg knows their format, which is not on the list of those that are read."""
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 9)
    with pytest.raises(VideoReadError, match=r"^not a video but a text file"):
        probe(str(tmp_path / "a.srt"))


NAMES = [
    "with space.mp4",
    "'single' and \"double\".mp4",
    "new\nline.mp4",
    "\x1b[31mred\x1b[0m.mp4",
    "emoji \U0001f600 ümlaut 日本.mp4",
    "-dash.mp4",
    "back\\slash.mp4",
    "100%d$HOME`id`;#?&*.mp4",
    "file:colon.mp4",
    "concat:a|b.mp4",
    " .mp4 ",
]


def test_names_of_every_kind_are_read(read: Callable[..., Results], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", width=64, height=64, seconds=0.5).read_bytes()
    folder = tmp_path / 'it\'s\n"odd" \U0001f600'
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(clip)
    results = read(NAMES, video_root=str(folder))
    assert {name: message(result) for name, result in results.items()} == dict.fromkeys(NAMES, "ok")


def test_a_file_without_permission(
    here: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", width=64, height=64)
    path.chmod(0)
    register_reader()
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read anything
    try:
        with pytest.raises(VideoReadError, match=r"^Permission denied"):
            probe(str(path))
    finally:
        os.seteuid(user)


class Drip(socketserver.BaseRequestHandler):
    """Sends a byte now and then, for ever."""

    def handle(self) -> None:
        self.server.requests += 1
        try:
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while not self.server.over.wait(0.1):
                self.request.sendall(b"x")
        except OSError:
            pass


def test_the_settings_reach_the_decode_processes(
    read: Callable[..., Results], limit_begins: Callable[..., None], tmp_path: Path
) -> None:
    """Roots, and that this machine may be asked. A download that takes too long is ended with its
    process, and leaves nothing."""
    clip = write_clip(tmp_path / "allowed" / "a.mp4", width=64, height=64)
    (tmp_path / "b.mp4").symlink_to(clip)
    (tmp_path / "c.mp4").write_bytes(clip.read_bytes())
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Drip) as server:
        server.requests, server.over = 0, threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/a.mp4"
        paths = [str(clip), f"{tmp_path}/b.mp4", f"{tmp_path}/c.mp4", url]
        limit_begins(lambda position, *_: position == 3 and server.requests)
        results = read(
            paths,
            timeout=1.0,
            allowed_roots=["../allowed"],
            allow_private_addresses=True,
        )
        server.over.set()
        server.shutdown()
    assert [message(results[path]) for path in paths] == [
        "ok",
        "ok",
        "read: lies outside the folders of data.allowed_roots (links are followed)",
        "timeout: not ready after 1 s",
    ]
    assert server.requests == 1


# --- a fuzz ------------------------------------------------------------------------------------

MUTATIONS = 300
CLIPS = {
    "h264.mp4": {"codec": "libx264", "options": {"g": "8", "bf": "2"}},
    "h264.flv": {"codec": "libx264"},
    "hevc.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.mkv": {"codec": "libvpx", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "mpeg2.ts": {"codec": "mpeg2video"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mjpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "wmv2.asf": {"codec": "wmv2"},
}


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 8, 64))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_header(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 4, 16))):
        data[chance.randrange(min(1024, len(data)))] = chance.randrange(256)


def flip_end(data: bytearray, chance: random.Random) -> None:
    """Where an MP4 has its index."""
    for _ in range(chance.choice((1, 4, 16))):
        data[-1 - chance.randrange(min(1024, len(data)))] = chance.randrange(256)


def extreme(data: bytearray, chance: random.Random) -> None:
    """Numbers at the end of their range, where there is a length or a count."""
    for _ in range(chance.choice((1, 4, 16))):
        place = chance.randrange(len(data) - 4)
        data[place : place + 4] = chance.choice(
            (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\0\0\0\1")
        )


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def cut_out(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    del data[place : place + chance.choice((1, 100, 1000))]


def insert(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    data[place:place] = chance.randbytes(chance.choice((1, 100, 1000)))


def repeat(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    data[place:place] = data[place : place + 500] * chance.choice((1, 20))


MUTATORS = [flip, flip_header, flip_end, extreme, truncate, cut_out, insert, repeat]


def test_fuzz(read: Callable[..., Results], tmp_path: Path) -> None:
    """300 mutations of twelve codecs and containers: each gives frames or an error record, and the
    clips they were made from read the same before, among and after them."""
    clips = [
        write_clip(tmp_path / name, width=96, height=64, fps=12, seconds=2.0, seed=i, **arguments)
        for i, (name, arguments) in enumerate(CLIPS.items())
    ]
    chance = random.Random(4)
    mutated = []
    for number in range(MUTATIONS):
        clip = clips[number % len(clips)]
        data = bytearray(clip.read_bytes())
        mutator = MUTATORS[number // len(clips) % len(MUTATORS)]
        mutator(data, chance)
        path = tmp_path / f"{number}.{mutator.__name__}.{clip.name}"
        path.write_bytes(data)
        mutated.append(path)
    good = {clip: [clip] for clip in clips}
    for i, clip in enumerate(clips):
        for part in ("middle", "end"):
            copy = tmp_path / f"{part}.{clip.name}"
            copy.write_bytes(clip.read_bytes())
            good[clip].append(copy)
            mutated.insert(150 + i if part == "middle" else len(mutated), copy)
    results = read([str(path) for path in [*clips, *mutated]])

    stages = Counter(message(result).partition(":")[0] for result in results.values())
    assert stages.keys() <= {"ok", "read", "timeout", "crash"}
    assert stages["read"] > MUTATIONS / 10  # else they were not mutated enough
    assert stages["ok"] > MUTATIONS / 10  # or too much for the decoders to see any
    for clip in clips:
        first, *others = (frames(results[str(path)]) for path in good[clip])
        assert all(np.array_equal(first, other) for other in others), clip.name


def frames(result: Prepared | SampleError) -> np.ndarray:
    ((pixels, _),) = result.requests[""]["multi_modal_data"]["video"]
    return pixels.numpy()
