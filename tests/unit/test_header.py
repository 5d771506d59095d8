"""The header of a video: what ffprobe says of it, and the size in which ffmpeg shows it."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction

import pytest
from helpers import samples
from PIL import Image
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.header import read_header

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed"),
]


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos by name: plain, turned as a phone turns them, and of pixels that are not square."""
    folder = tmp_path_factory.mktemp("videos")
    source = ("-f", "lavfi", "-i", "testsrc=size=320x180:rate=30000/1001:duration=2.5")
    ffmpeg(*source, folder / "plain.mp4")
    turn = ("-c", "copy", "-metadata:s:v", "rotate=90")
    ffmpeg("-i", folder / "plain.mp4", *turn, folder / "turned.mp4")
    ffmpeg(*source, "-vf", "setsar=4/3", folder / "wide.mkv")
    ffmpeg(*source, "-c:v", "libvpx-vp9", "-deadline", "realtime", folder / "vp9.webm")
    ffmpeg(*source, "-f", "h264", folder / "raw.h264")
    return folder


@pytest.mark.parametrize("name", ["plain.mp4", "turned.mp4", "wide.mkv", "vp9.webm"])
def test_a_header_says_what_ffprobe_says(videos, name, tmp_path):
    path = videos / name
    fields = "stream=codec_name,avg_frame_rate:format=duration"
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", fields]
    probed = json.loads(subprocess.check_output([*command, "-of", "json", str(path)]))
    (stream,) = probed["streams"]
    header = read_header(str(path), with_size=True)
    assert header.codec == stream["codec_name"]
    assert header.fps == pytest.approx(float(Fraction(stream["avg_frame_rate"])))
    assert header.duration == pytest.approx(float(probed["format"]["duration"]), abs=0.05)
    picture = tmp_path / "frame.png"
    square = "scale=ceil(iw*max(sar\\,1)):ceil(ih/min(sar\\,1)):flags=neighbor"
    ffmpeg("-i", path, "-vf", square, "-frames:v", 1, picture)
    assert (header.width, header.height) == pytest.approx(Image.open(picture).size, abs=1)


def test_the_size_is_not_looked_for_without_need(videos):
    assert read_header(str(videos / "plain.mp4"), with_size=False).width is None


def test_a_file_that_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(VideoReadError):
        read_header(str(tmp_path / "a.mp4"), with_size=False)


def test_a_condition_on_the_header(splitting, videos):
    """A field of the sample goes first; what cannot be read is kept, and a file is only opened if
    the rest of the condition does not decide."""
    (videos / "broken.mp4").write_text("no video")
    names = ["plain.mp4", "turned.mp4", "broken.mp4", "missing.mp4", "raw.h264", "plain.mp4"]
    entries = [
        {**sample, "path": str(videos / name)}
        for sample, name in zip(samples(len(names)), names, strict=True)
    ]
    entries[5]["duration"] = 0.5
    splitting.run.configure(data={"where": "id != 3 and duration >= 2 and height < 200"})
    splitting(entries, 1)
    assert splitting.pending == ["0", "2"]
    assert (splitting.manifest.dropped, splitting.manifest.unknown) == (4, 1)
    assert splitting.order == [str(number) for number in range(6)]
