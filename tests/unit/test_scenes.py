"""``python -m video_pipeline.scenes``: cuts at the times of ffmpeg, kept video by video."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import read_jsonl
from video_pipeline.commands.scenes import SceneCache, SceneSpec, find_scenes
from video_pipeline.config import load_config
from video_pipeline.data.clips import ClipsDataset

pytest.importorskip("scenedetect")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed"),
]

EDGES = [1.48, 4.0]
"""Where the scenes of the videos below begin, in seconds after the first frame."""


def ffmpeg(*arguments: object) -> str:
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video of three scenes: plain, of uneven spacing, with a late start, and in MPEG-TS."""
    folder = tmp_path_factory.mktemp("videos")
    sources = [
        *("-f", "lavfi", "-i", "testsrc=size=320x180:rate=25:duration=1.48"),
        *("-f", "lavfi", "-i", "mandelbrot=size=320x180:rate=25"),
        *("-f", "lavfi", "-i", "smptebars=size=320x180:rate=25"),
    ]
    graph = "[1]trim=duration=2.52[b];[2]trim=duration=2[c];[0][b][c]concat=n=3:v=1"
    ffmpeg(*sources, "-filter_complex", f"{graph},format=yuv420p", folder / "plain.mp4")
    plain = ("-i", folder / "plain.mp4")
    uneven = "select='not(between(n,5,20)+between(n,110,125)+eq(mod(n,7),3))'"
    ffmpeg(*plain, "-vf", uneven, "-fps_mode", "vfr", folder / "uneven.mkv")
    ffmpeg(*plain, "-c", "copy", "-output_ts_offset", 7.5, folder / "late.mkv")
    ffmpeg(*plain, "-c", "copy", folder / "stream.ts")
    return folder


class Deadly(SceneSpec):
    """A decoder that some file crashes."""

    def worker(self, shared, number):
        find = super().worker(shared, number)
        return lambda uri: os.abort() if "deadly" in uri else find(uri)


@pytest.fixture
def find(videos, monkeypatch):
    """Finds the scenes of these videos; returns the samples that were written."""
    monkeypatch.chdir(videos)
    monkeypatch.setattr("video_pipeline.commands.scenes.SceneSpec", Deadly)

    def find(*names: str) -> list[dict]:
        lines = [json.dumps({"path": name, "n": number}) for number, name in enumerate(names)]
        (videos / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines))
        find_scenes(load_config({}), Path("out.jsonl"), 2)
        return read_jsonl(videos / "out.jsonl")

    return find


def by_ffmpeg(path) -> list[float]:
    """When the picture changes, in seconds after the first frame."""
    graph = "select='gt(scene,0.3)+eq(n,0)',metadata=print:file=-"
    printed = ffmpeg("-copyts", "-i", path, "-vf", graph, "-f", "null", "-")
    first, *cuts = map(float, re.findall(r"pts_time:([\d.]+)", printed))
    return [cut - first for cut in cuts]


NAMES = ["plain.mp4", "uneven.mkv", "late.mkv", "stream.ts"]


def test_scenes_begin_where_ffmpeg_sees_them(find, videos, capsys):
    """And a video that cannot be read, or crashes its reader, costs only itself."""
    shutil.copy(videos / "plain.mp4", videos / "deadly.mp4")
    (videos / "text.mp4").write_text("no video")
    bad = ["text.mp4", "deadly.mp4", "missing\x1b[2J.mp4"]
    samples = find(*NAMES, *bad)
    assert [sample["path"] for sample in samples] == [*NAMES, *bad]
    for sample in samples[:4]:
        assert sample["cuts"] == pytest.approx(by_ffmpeg(videos / sample["path"]), abs=0.0015)
    assert samples[0]["cuts"] == pytest.approx(EDGES)
    assert not any("cuts" in sample for sample in samples[4:])
    printed = capsys.readouterr().out
    assert "3 videos have no cuts" in printed
    assert "missing\\x1b[2J.mp4: No such file" in printed  # and does not clear the screen
    assert "text.mp4: not a video but a text file" in printed
    assert "deadly.mp4: ProcessDied: the decode process died (killed by SIGABRT" in printed

    raw = {**samples[0], "__key": "0", "__video_uri": str(videos / "plain.mp4")}
    windows = ClipsDataset.expand(raw, {})
    times = [(window["video_start"], window["video_end"]) for window in windows]
    assert times == [(0.0, 1.48), (1.48, 4.0), (4.0, 6.0)]

    # after a call that was killed while it wrote a line, only what is new is looked at
    cache = videos / ".scenes" / "out.jsonl"
    with open(cache, "ab") as stream:
        stream.write(cache.read_bytes()[:40])
    shutil.copy(videos / "stream.ts", videos / "new.mp4")
    again = find(*NAMES, "new.mp4", "plain.mp4")
    assert "1 of 5 videos were looked at" in capsys.readouterr().out
    assert [s["cuts"] for s in again[:4]] == [s["cuts"] for s in samples[:4]]
    assert (again[4]["cuts"], again[5]["cuts"]) == (samples[3]["cuts"], samples[0]["cuts"])
    find(*NAMES, "new.mp4")
    assert "0 of 5 videos were looked at" in capsys.readouterr().out


def test_a_size_that_changes_and_colours_that_cannot_be_converted(find, videos, capsys):
    """The first gets its cuts; the second costs only itself."""
    plain = ("-i", videos / "plain.mp4", "-an")
    ffmpeg(*plain, "-t", 3, "-f", "mpegts", videos / "small.ts")
    larger = ("-ss", 3, *plain, "-vf", "scale=400:300", "-output_ts_offset", 3, "-f", "mpegts")
    ffmpeg(*larger, videos / "large.ts")
    pieces = [(videos / name).read_bytes() for name in ("small.ts", "large.ts")]
    (videos / "grows.ts").write_bytes(b"".join(pieces))
    ffmpeg(*plain, "-colorspace", "ycgco", videos / "ycgco.mp4")
    samples = find("ycgco.mp4", "grows.ts", "plain.mp4")
    assert [sample.get("cuts") for sample in samples] == [
        None,
        pytest.approx(EDGES, abs=0.05),
        EDGES,
    ]
    printed = capsys.readouterr().out
    assert "1 videos have no cuts" in printed
    assert "ycgco.mp4: [Errno 95] Operation not supported" in printed


def test_a_video_that_has_changed_is_not_known(tmp_path):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"one")
    cache = SceneCache(tmp_path / "cache.jsonl")
    cache.add(str(video), [1.5])
    assert SceneCache(tmp_path / "cache.jsonl").find(str(video)) == [1.5]
    video.write_bytes(b"other")
    assert SceneCache(tmp_path / "cache.jsonl").find(str(video)) is None
