"""A list of videos from elsewhere reads only what it may, and runs and forges nothing."""

from __future__ import annotations

import base64
import ctypes
import io
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers import Splitter, samples
from PIL import Image
from qwen_vl_utils import process_vision_info
from qwen_vl_utils import vision_process as qwen
from video_pipeline.common import program
from video_pipeline.common.printable import PrintableFormatter
from video_pipeline.config import Data, load_config
from video_pipeline.data.frames import FramesDataset
from video_pipeline.errors import UserError
from video_pipeline.model.prompt import Prompter
from video_pipeline.run.fingerprint import settings_of
from video_pipeline.storage import access
from video_pipeline.testing.clips import write_clip
from video_pipeline.video.access import Access, limit_access, read_image
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.reader import probe, read_chosen, register_reader


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits and qwen-vl-utils are as before when a test ends."""
    monkeypatch.setattr(access, "_access", Access.of(Data()))
    monkeypatch.setattr(qwen, "fetch_image", qwen.fetch_image)


# --- which files -------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`allowed` and `allowed2` with a clip, an image and a folder of images each, and ways from the
    first to the second. Only the first may be read."""
    for name in ("allowed", "allowed2"):
        folder = tmp_path / name
        write_clip(folder / "clip.mp4", width=64, height=64, seconds=0.5)
        (folder / "frames").mkdir()
        for picture in (folder / "image.png", *(folder / "frames" / f"{n}.png" for n in (1, 2))):
            Image.new("RGB", (64, 64)).save(picture)
    allowed, other = tmp_path / "allowed", tmp_path / "allowed2"
    (allowed / "file_link.mp4").symlink_to(other / "clip.mp4")
    (allowed / "hard_to_see.png").symlink_to("../allowed2/image.png")
    (allowed / "folder_link").symlink_to(other)
    (allowed / "mixed").mkdir()
    (allowed / "mixed" / "1.png").symlink_to(allowed / "image.png")
    (allowed / "mixed" / "2.png").symlink_to(other / "image.png")
    (other / "back.mp4").symlink_to(allowed / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    limit_access(Access.of(Data(allowed_roots=["allowed"])))
    return tmp_path


def frames_of(folder: str) -> None:
    look([{"video": FramesDataset.images_of(folder)}])


def look(items: list[dict]) -> None:
    """Read the items of a message."""
    register_reader()
    process_vision_info([{"role": "user", "content": items}])


WAYS: dict[str, Callable[[str], object]] = {
    "video": lambda path: look([{"type": "video", "video": path}]),
    "video by file://": lambda path: look([{"type": "video", "video": f"file://{path}"}]),
    "image": lambda path: look([{"type": "image", "image": path}]),
    "image by file://": lambda path: look([{"type": "image", "image": f"file://{path}"}]),
    "image_url": lambda path: look([{"type": "image_url", "image_url": path}]),
    "frames of a message": lambda path: look([{"type": "video", "video": [path, path]}]),
    "frames": frames_of,
    "sound": lambda path: read_chosen({"video": path}, lambda *_: [0], sound_rate=16_000),
}
NAMES = {"video": "clip.mp4", "sound": "clip.mp4", "frames": "frames"}


@pytest.mark.parametrize("way", WAYS)
def test_what_lies_under_a_root_is_read(folders: Path, way: str) -> None:
    name = NAMES.get(way.split(" by ")[0], "image.png")
    WAYS[way](f"{folders}/allowed/{name}")
    WAYS[way](f"{folders}/allowed2/../allowed/{name}")
    if name == "clip.mp4":
        WAYS[way](f"{folders}/allowed2/back.mp4")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "place", ["allowed2", "allowed/../allowed2", "allowed/folder_link", "./allowed2"]
)
def test_what_lies_elsewhere_is_not(folders: Path, way: str, place: str) -> None:
    name = NAMES.get(way.split(" by ")[0], "image.png")
    with pytest.raises(VideoReadError, match=r"outside the folders of data\.allowed_roots"):
        WAYS[way](f"{folders}/{place}/{name}")


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("video", "file_link.mp4"),
        ("image", "hard_to_see.png"),
        ("frames", "mixed"),
        ("video", "no such file/../../allowed2/clip.mp4"),
        ("image", "../allowed2/no such file"),
    ],
)
def test_links_and_dots_lead_nowhere_else(folders: Path, way: str, name: str) -> None:
    with pytest.raises(VideoReadError, match="outside the folders"):
        WAYS[way](f"{folders}/allowed/{name}")


def test_a_folder_that_lies_elsewhere_is_not_listed(folders: Path) -> None:
    (folders / "secrets").mkdir()
    for name in ("secrets", "allowed2/frames", "allowed/folder_link/frames", "nowhere"):
        with pytest.raises(VideoReadError, match="outside the folders"):
            FramesDataset.images_of(str(folders / name))


def test_a_list_of_frames_may_lie_elsewhere_than_in_files(folders: Path) -> None:
    """Addresses are checked when they are opened, members of a tar with their tar."""
    listed = ["s3://bucket/clips/1.jpg", "https://host/2.jpg", f"{folders}/allowed/a.tar#3.jpg"]
    assert FramesDataset.images_of(listed) == listed
    limit_access(Access.of(Data(allowed_roots=["allowed", "s3://bucket/others"])))
    for address in (listed[0], f"{folders}/allowed2/a.tar#3.jpg"):
        with pytest.raises(VideoReadError, match=r"outside the \w+ of data\.allowed_roots"):
            look([{"video": FramesDataset.images_of([address, address])}])


@pytest.mark.slow
def test_split_cuts_only_what_lies_under_a_root(splitting: Splitter) -> None:
    """A dataset that makes windows looks into the files before any decode process does. What it
    must not read stays whole, and becomes an error record."""
    write_clip(splitting.run.folder / "0.mp4", seconds=2.0, fps=6)
    splitting.run.configure(run={"dataset": "clips"}, task_params={"clip_seconds": 1})
    splitting.run.configure(data={"allowed_roots": ["elsewhere"]})
    assert splitting(samples(1)).manifest.samples == 1
    splitting.run.configure(data={"allowed_roots": ["."]})
    assert splitting(samples(1)).manifest.samples == 2


def test_roots(folders: Path) -> None:
    path = f"{folders}/allowed/clip.mp4"
    for roots in (None, ["/"], ["allowed2", "allowed"], [folders / "allowed2/../allowed"]):
        limit_access(Access.of(Data(allowed_roots=roots)))
        assert probe(path).frames == 12
    limit_access(Access.of(Data(allowed_roots=["allowed2/folder"])))
    with pytest.raises(VideoReadError, match="outside the folders"):
        probe(path)
    limit_access(Access.of(Data(allowed_roots=[])))  # nothing local
    with pytest.raises(VideoReadError, match="outside the folders"):
        probe(path)


def test_limits_change_no_answer() -> None:
    limits = {"allowed_roots": ["/a"], "max_download_gb": 1, "allow_private_addresses": True}
    plain, limited = (load_config({"data": data}) for data in ({}, limits))
    assert settings_of(plain) == settings_of(limited)


# --- which formats -----------------------------------------------------------------------------

CONTAINERS = {  # name of the file: codec, and the container where its suffix does not tell
    **dict.fromkeys(("a.mp4", "a.mov", "a.mkv", "a.flv", "a.3gp", "a.ts", "a.m2ts"), ("libx264",)),
    **dict.fromkeys(("a.avi", "a.nut"), ("mpeg4",)),
    **dict.fromkeys(("a.mpg", "a.vob", "a.mxf", "a.gxf"), ("mpeg2video",)),
    "a.webm": ("libvpx-vp9",),
    "a.ogv": ("libvpx", "ogg"),
    "a.ivf": ("libvpx",),
    "a.wmv": ("wmv2",),
    "a.asf": ("msmpeg4",),
    "a.gif": ("gif",),
    "a.apng": ("apng",),
    "a.y4m": ("rawvideo", "yuv4mpegpipe"),
    "a.m4v": ("mpeg4", "mp4"),
    "a.rm": ("rv10",),
    "a.swf": ("flv",),
    "a.dv": ("dvvideo",),
    "a.mjpeg": ("mjpeg",),
    "a.h264": ("libx264",),
    "a.hevc": ("libx265",),
    "a.m2v": ("mpeg2video", "mpeg2video"),
    "a.obu": ("libsvtav1",),
}
PIXELS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p", "dvvideo": "yuv411p"}


def write_container(path: Path, codec: str, container: str | None = None) -> Path:
    size = (720, 480) if codec == "dvvideo" or path.suffix in (".mxf", ".gxf") else (176, 144)
    rate = Fraction(30000, 1001) if codec == "dvvideo" else 25
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, PIXELS.get(codec, "yuv420p")
        for number in range(8):
            picture = np.full((size[1], size[0], 3), 20 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_that_ffmpeg_reads_is_read(tmp_path: Path, name: str) -> None:
    try:
        path = write_container(tmp_path / name, *CONTAINERS[name])
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"cannot be written here: {error}")
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert probe(str(path)).frames == len(packets)


MANIFEST = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"
 type="static" mediaPresentationDuration="PT1S"><Period><AdaptationSet><Representation id="1"
 mimeType="video/mp4" bandwidth="1"><BaseURL>other.ts</BaseURL></Representation></AdaptationSet>
</Period></MPD>"""
PLAYLISTS = {  # a text with the path of another file, and the names it goes by
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\n{other}\n"
    "#EXT-X-ENDLIST\n",
    "HLS master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{other}\n",
    "concat": "ffconcat version 1.0\nfile {other}\n",
    "DASH": MANIFEST,
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "VobSub": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:00, filepos: 00\n",
    "a list of names": "other.ts\n",
}


class Opened:
    """Tells whether somebody opens a file."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK)
        self._libc.inotify_add_watch(self._inotify, os.fsencode(path), 0x20)  # IN_OPEN

    def __bool__(self) -> bool:
        try:
            return bool(os.read(self._inotify, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._inotify)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Opened]:
    """Whether `other.ts`, a good video beside the others, is opened."""
    path = write_clip(tmp_path / "other.ts", codec="mpeg2video", width=64, height=64)
    (tmp_path / "list.sub").symlink_to(path)
    opened = Opened(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat", "list.idx"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_not_followed(tmp_path: Path, other: Opened, kind: str, name: str) -> None:
    places = ["other.ts", str(tmp_path / "other.ts"), f"file:{tmp_path}/other.ts"]
    for place in places:
        text = PLAYLISTS[kind].replace("{other}", place).replace("{port}", "5004")
        (tmp_path / name).write_text(text)
        with pytest.raises(VideoReadError):
            probe(str(tmp_path / name))
    assert not other


@pytest.mark.parametrize(
    ("kind", "name"), [("HLS", "list.m3u8"), ("concat", "list.mp4"), ("VobSub", "list.idx")]
)
def test_ffmpeg_alone_would_follow_it(
    tmp_path: Path, other: Opened, kind: str, name: str, capfd: pytest.CaptureFixture
) -> None:
    """So the test above could fail."""
    (tmp_path / name).write_text(PLAYLISTS[kind].replace("{other}", "other.ts"))
    with av.open(str(tmp_path / name)):
        pass
    assert other


def test_a_playlist_does_not_ask_another_host(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.ts"
        for name, kind in (("list.m3u8", "HLS"), ("list.mp4", "concat")):
            (tmp_path / name).write_text(PLAYLISTS[kind].replace("{other}", url))
            with pytest.raises(VideoReadError, match="not a video in one file"):
                probe(str(tmp_path / name))
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize("name", ["%d.png", "1.png"])
def test_pictures_are_no_video(tmp_path: Path, name: str) -> None:
    """Nor does a pattern in a name read those it matches."""
    for number in ("1", "2", "3", "%d"):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoReadError, match=r"an image \(PNG\), not a video"):
        probe(str(tmp_path / name))


@pytest.mark.parametrize(
    "name", ["concat:a.ts", "subfile,,start,0,end,9,,:a.ts", "pipe:0", "data:,x", "lavfi:x"]
)
def test_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "a.ts", codec="mpeg2video", width=64, height=64, seconds=0.5)
    with pytest.raises(VideoReadError, match="No such file"):
        probe(name)
    (tmp_path / "a.ts").rename(tmp_path / name)
    assert probe(name).frames == 12


# --- images ------------------------------------------------------------------------------------


def test_images_within_a_message() -> None:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (255, 0, 0)).save(file, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    assert read_image(uri).size == (20, 10)
    with pytest.raises(VideoReadError, match=r"^image: not base64"):
        read_image("data:image/png;base64,a")
    with pytest.raises(VideoReadError, match=r"^image: not a file of a known format$"):
        read_image("data:image/png;base64,AAAA")


@pytest.mark.parametrize("kind", ["eps", "pipe", "folder", "missing", "text", "truncated"])
def test_images_that_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "image.png"
    said = "not a file of a known format"
    match kind:
        case "eps":  # Pillow would start Ghostscript
            monkeypatch.setattr("subprocess.Popen", None)
            Image.new("RGB", (64, 64)).save(path, "EPS")
        case "pipe":
            os.mkfifo(path)
            said = "not a regular file"
        case "folder":
            path.mkdir()
            said = "is a directory, not a file"
        case "missing":
            said = "No such file or directory"
        case "text":
            path.write_text("text")
        case "truncated":
            Image.effect_noise((64, 64), 90).save(path)
            path.write_bytes(path.read_bytes()[:2000])
            said = "truncated"
    with pytest.raises(VideoReadError, match=f"^image: .*{said}"):
        read_image(str(path))


def test_an_image_for_which_there_is_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is not the image's fault: the worker names its limit."""

    def convert(*_: object) -> None:
        raise MemoryError

    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(MemoryError):
        read_image(str(tmp_path / "image.png"))


# --- code --------------------------------------------------------------------------------------


def test_no_code_of_a_model_is_run_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own default is False. transformers' is to ask whoever sits at the terminal."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert "trust_remote_code" not in load_config({}).vllm.arguments
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    code = {"AutoProcessor": "evil.Evil", "AutoConfig": "evil.Evil"}
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        content = {"model_type": "evil", "processor_class": "Evil", "auto_map": code}
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="trust_remote_code"):
        Prompter(str(tmp_path))
    assert not (tmp_path / "ran").exists()


# --- what is printed ---------------------------------------------------------------------------

NASTY = "a\nERROR \x1b[31mforged\x1b[0m\r\x00\x7f\x9b\u202e\u2028\ud800 ü\U0001f600"
SHOWN = r"a\nERROR \x1b[31mforged\x1b[0m\r\x00\x7f\x9b\u202e\u2028\ud800 " + "ü\U0001f600"


@pytest.fixture
def line() -> Callable[..., str]:
    """What the log shows."""

    def log(message: str, *arguments: object) -> str:
        record = logging.LogRecord("name", logging.INFO, "file", 1, message, arguments, None)
        shown = PrintableFormatter("%(levelname)s %(message)s").format(record)
        assert record.args == (arguments[0] if isinstance(record.args, dict) else arguments)
        return shown

    return log


def test_log_lines_are_escaped(line: Callable[..., str]) -> None:
    assert line("%s failed: %s", NASTY, ValueError(NASTY)) == f"INFO {SHOWN} failed: {SHOWN}"
    assert line("%(key)s!", {"key": NASTY}) == f"INFO {SHOWN}!"
    assert line("%s", Path("a\nb")) == r"INFO a\nb"
    shown = line("%s %r", {"message": [NASTY]}, NASTY)
    assert shown.isprintable()
    assert r"\x1b[31mforged" in shown


def test_log_lines_of_our_own_stay(line: Callable[..., str]) -> None:
    assert line("one\ntwo") == "INFO one\ntwo"
    assert line("%d of %.1f, %5.2f%%, %s", 3, 4, np.float32(0.5), None) == (
        "INFO 3 of 4.0,  0.50%, None"
    )
    assert line("caf\u00e9 %s", "\u65e5\u672c \U0001f600") == "INFO café 日本 \U0001f600"


def test_errors_for_people_are_escaped(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def main() -> None:
        logging.getLogger("x").warning("sample %s", NASTY)
        raise UserError(f"two lines:\n  {NASTY[2:]}")

    with pytest.raises(SystemExit):
        program.run(main)
    logged, first, second = capfd.readouterr().err.splitlines()
    assert logged.endswith(f"WARNING sample {SHOWN}")
    assert first == "error: two lines:"
    assert second == f"  {SHOWN[3:]}"
