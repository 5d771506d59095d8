"""Videos and inputs in stores: S3 (moto's server), http with ranges, the hub; signed addresses."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import av
import obstore
import orjson
import pandas
import pytest
from hub import Hub, serving
from obstore.store import S3Store
from s3 import serving_s3
from video_pipeline.commands import samples as samples_command
from video_pipeline.config import Data, load_config
from video_pipeline.config.source import Source, stable_address
from video_pipeline.errors import UserError
from video_pipeline.run.origin import check_origin, origin_of
from video_pipeline.samples.sources import read_blocks
from video_pipeline.storage import access, fetched, stores
from video_pipeline.storage.access import Access
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.fetcher import FetcherProcess
from video_pipeline.storage.opening import open_blob
from video_pipeline.testing.clips import write_clip
from video_pipeline.video.header import read_header
from video_pipeline.video.reader import measuring, probe, read_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> bytes:
    """A clip whose header stands at the end, and which is larger than what is read ahead."""
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_clip(path, width=640, height=480, seconds=4.0, options={"crf": "1"})
    assert path.stat().st_size > 4 << 20
    return path.read_bytes()


@pytest.fixture(autouse=True)
def limited(monkeypatch, tmp_path_factory):
    """Sets limits of this process; they end with the test."""

    def limit(**settings) -> None:
        monkeypatch.setattr(access, "_access", Access.of(Data(**settings)))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    limit(allow_private_addresses=True)
    return limit


# --- S3 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3(tmp_path_factory, clip) -> Iterator[S3Store]:
    """A bucket ``clips`` of a server of our own, to which the environment leads."""
    with serving_s3(tmp_path_factory.mktemp("moto") / "log", "clips") as store:
        obstore.put(store, "cats/a.mp4", clip)
        for name in ("cats/b c.mp4", "cats/more/d.webm", "cats/.x/e.mp4", "cats/notes.txt"):
            obstore.put(store, name, name.encode())
        obstore.put(store, "catsanddogs/x.mp4", b"x")
        yield store


def lines(place: str) -> list[dict]:
    return [orjson.loads(line) for line in b"".join(read_blocks(place)).split(b"\n") if line]


def test_a_video_in_a_store(s3, clip, tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip)
    assert probe("s3://clips/cats/a.mp4") == probe(str(tmp_path / "a.mp4"))


def test_a_folder_of_a_store(s3):
    found = lines("s3://clips/cats")
    assert [(sample["path"], sample["size"]) for sample in found[1:]] == [
        ("b c.mp4", 12),
        ("more/d.webm", 16),
    ]
    assert found[0]["etag"] == obstore.head(s3, "cats/a.mp4")["e_tag"]
    assert lines("s3://clips/cats/") == found
    assert load_config({"data": {"input_jsonl": "s3://clips/cats"}}).video_root == "s3://clips/cats"


def test_a_pattern_in_a_store(s3):
    def paths(pattern: str) -> list[str]:
        return [sample["path"] for sample in lines(pattern)]

    assert paths("s3://clips/cats/*.mp4") == ["a.mp4", "b c.mp4"]
    assert paths("s3://clips/**/*.webm") == ["cats/more/d.webm"]
    assert paths("s3://clips/cats/[a-b]*") == ["a.mp4", "b c.mp4"]
    with pytest.raises(UserError, match=r"s3://clips/cats/\*\.avi: the pattern matches no file"):
        paths("s3://clips/cats/*.avi")


def test_an_object_that_changes_is_another_sample_and_another_input(s3, monkeypatch):
    obstore.put(s3, "changing/a.mp4", b"1")
    config = load_config({"data": {"input_jsonl": "s3://clips/changing"}})
    before, origin = lines("s3://clips/changing"), origin_of(config)
    assert origin_of(config) == origin
    obstore.put(s3, "changing/a.mp4", b"2")
    assert lines("s3://clips/changing") != before
    assert origin_of(config) != origin
    monkeypatch.setattr(stores, "listed", None)  # A job of the run does not list it again.
    check_origin(origin, config, Path("manifest.json"))


@pytest.mark.parametrize("name", ["list.txt", "t.csv.gz", "s.jsonl"])
def test_an_input_in_a_store(s3, name):
    text = {"list.txt": "cats/a.mp4\n", "t.csv.gz": "path\ncats/a.mp4\n"}
    data = text.get(name, '{"path": "cats/a.mp4"}\n').encode()
    obstore.put(s3, name, gzip.compress(data) if name.endswith("gz") else data)
    assert lines(f"s3://clips/{name}") == [{"path": "cats/a.mp4"}]
    assert Source(f"s3://clips/{name}").root == "s3://clips"


def test_a_parquet_file_in_a_store(s3, tmp_path):
    pandas.DataFrame({"path": ["cats/a.mp4"], "n": [1]}).to_parquet(tmp_path / "t.parquet")
    obstore.put(s3, "t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert lines("s3://clips/t.parquet") == [{"path": "cats/a.mp4", "n": 1}]


def shard_of(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_members_of_a_tar_in_a_store(s3, clip):
    members = [("a.mp4", clip), ("a.json", b'{"n": 1}'), ("b.mp4", b"b")]
    obstore.put(s3, "shards/x.tar", shard_of(*members))
    etag = obstore.head(s3, "shards/x.tar")["e_tag"]
    assert lines("s3://clips/shards/x.tar") == [
        {"size": len(clip), "n": 1, "path": "x.tar#a.mp4", "etag": etag},
        {"size": 1, "path": "x.tar#b.mp4", "etag": etag},
    ]
    assert lines("s3://clips/shards/*.tar") == lines("s3://clips/shards/x.tar")
    assert b"".join(open_blob("s3://clips/shards/x.tar#a.mp4").pieces()) == clip
    assert read_header("s3://clips/shards/x.tar#a.mp4", with_size=True).width == 640


def test_a_tar_whose_name_looks_like_a_pattern(s3, clip):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo("7.mp4")
        info.size = len(clip)
        tar.addfile(info, io.BytesIO(clip))
    obstore.put(s3, "tars/all [1080p].tar", packed.getvalue())
    for place in ("s3://clips/tars", "s3://clips/tars/*.tar"):
        (sample,) = lines(place)
        assert sample["path"] == "all [1080p].tar#7.mp4"
    assert open_blob("s3://clips/tars/all [1080p].tar#7.mp4").size == len(clip)


def test_a_row_of_a_parquet_file_in_a_store(s3, clip, tmp_path):
    pandas.DataFrame({"video": [clip], "n": [1]}).to_parquet(tmp_path / "v.parquet")
    obstore.put(s3, "v.parquet", (tmp_path / "v.parquet").read_bytes())
    (row,) = lines("s3://clips/v.parquet")
    assert (row["path"], row["n"]) == ("v.parquet#0:video", 1)
    assert b"".join(open_blob(f"s3://clips/{row['path']}").pieces()) == clip


def test_what_lies_in_a_store_is_fetched_ahead(s3, clip, tmp_path):
    obstore.put(s3, "ahead.tar", shard_of(("a.mp4", clip), ("b.mp4", b"b")))
    pandas.DataFrame({"video": [b"0", clip]}).to_parquet(tmp_path / "v.parquet")
    obstore.put(s3, "ahead.parquet", (tmp_path / "v.parquet").read_bytes())
    names = ("cats/a.mp4", "ahead.tar#a.mp4", "ahead.parquet#1:video", "gone.mp4")
    addresses = tuple(f"s3://clips/{name}" for name in names)
    process = FetcherProcess(access.limits(), 1e9, 60.0)
    try:
        process.pipe.send((1, addresses))
        _, found = process.pipe.recv()
        with fetched.reading(found):
            for address in addresses[:3]:
                with contextlib.closing(fetched.opened(address)) as file:
                    assert file.read() == clip
            with pytest.raises(VideoReadError, match="the store has no such object"):
                fetched.opened(addresses[3])
    finally:
        process.stop()


def test_what_is_not_there(s3):
    with pytest.raises(VideoReadError, match="no such object"):
        probe("s3://clips/gone.mp4")
    with pytest.raises(UserError, match=r"cannot read s3://clips/gone\.jsonl: .*no such object"):
        lines("s3://clips/gone.jsonl")
    with pytest.raises(UserError, match="s3://clips/gone: no videos in this folder"):
        lines("s3://clips/gone")


def test_the_jsonl_of_a_folder_in_a_store(s3, tmp_path, monkeypatch):
    output = str(tmp_path / "out.jsonl")
    monkeypatch.setattr("sys.argv", ["samples", "s3://clips/cats", "-o", output])
    samples_command.main()
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["path"]) == ("a.mp4", "s3://clips/cats/a.mp4")
    assert first["size"] > 4 << 20


# --- limits ---------------------------------------------------------------------------------------


def test_roots_hold_for_stores(s3, limited):
    limited(allowed_roots=["s3://clips/cats"])
    assert open_blob("s3://clips/cats/notes.txt").read(0, 4) == b"cats"
    for address in ("s3://clips/catsanddogs/x.mp4", "s3://other/cats/a.mp4", "gs://clips/cats/a"):
        with pytest.raises(VideoReadError, match=r"outside the addresses of data\.allowed_roots"):
            open_blob(address)
    with pytest.raises(VideoReadError, match=r"holds `\.\.`"):
        open_blob("s3://clips/cats/../catsanddogs/x.mp4")
    with pytest.raises(VideoReadError, match="outside the folders"):
        open_blob("/etc/hostname")


def test_an_object_that_is_too_large(s3, limited):
    limited(max_download_gb=0.001)
    with pytest.raises(VideoReadError, match=r"larger than 0\.001 GB"):
        probe("s3://clips/cats/a.mp4")


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3://b",
        "s3://b/",
        "s3://user:word@b/a",
        "s3://b:9/a",
        "s3://evil.org#/a",
        "hf://a",
    ],
)
def test_addresses_of_nothing(address):
    with pytest.raises(ValueError, match=r"expected (s3|hf)://"):
        stores.check_address(address)


# --- http -----------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives parts of ``server.files``, as object stores do."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = unquote(self.path.partition("?")[0])
        if target := self.server.redirects.get(name):
            self.answer(302, b"", Location=target)
            return
        data = self.server.files[name]
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not part or name == "/whole.mp4":
            self.answer(200, data)
            return
        start, stop = int(part[1]), min(int(part[2]) + 1, len(data))
        size = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self.answer(206, data[start:stop], **size)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        about = {"ETag": '"1"', "Last-Modified": "Fri, 27 Nov 2026 10:00:00 GMT"}
        for name, value in {"Content-Length": str(len(body)), **about, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.sent += len(body)  # first: who has it all may ask how much that was
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(clip):
    """A server with a clip; ``sent`` counts its bytes."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.redirects, server.sent = {"/a.mp4": clip, "/whole.mp4": clip}, {}, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_header_is_read_from_a_part_of_the_video(site, clip, tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip)
    assert read_header(f"{site.url}/a.mp4?x=1", with_size=True) == read_header(
        str(tmp_path / "a.mp4"), with_size=True
    )
    assert site.sent < len(clip) // 2
    with pytest.raises(VideoReadError, match="no range requests"):
        read_header(f"{site.url}/whole.mp4", with_size=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts"])
@pytest.mark.parametrize("segment", [{}, {"video_start": 1.0, "video_end": 3.0}])
def test_a_plan_reads_the_header_of_a_remote_video(site, tmp_path, name, segment):
    """It counts the same frames of the same size."""
    path = tmp_path / name
    write_clip(path, width=640, height=480, seconds=4.0, options={"crf": "1"})
    site.files[f"/{name}"] = path.read_bytes()
    with measuring():
        there = read_video({"video": f"{site.url}/{name}", "nframes": 8, **segment})
        here = read_video({"video": str(path), "nframes": 8, **segment})
    assert site.sent < path.stat().st_size / 3
    assert there[0].shape == here[0].shape
    assert there[1].info.num_bytes == path.stat().st_size
    assert there[1].info.duration == pytest.approx(here[1].info.duration, abs=0.002)
    if name in ("a.mp4", "a.mov"):
        assert (there[1], there[1].info) == (here[1], here[1].info)


@pytest.mark.parametrize("kind", ["dash", "frag_keyframe", "edit_list"])
def test_a_plan_counts_frames_that_a_header_does_not_list(site, tmp_path, kind):
    """An MP4 for DASH lists those of its first fragment alone; an edit list hides some."""
    source, path = tmp_path / "source.mp4", tmp_path / "a.mp4"
    write_clip(source, seconds=10.0, fps=25, options={"g": "25"})
    flags = {} if kind == "edit_list" else {"movflags": f"{kind}+frag_keyframe"}
    with av.open(str(source)) as old, av.open(str(path), "w", options=flags) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                if kind == "edit_list":
                    packet.pts -= 10 * packet.duration
                    packet.dts -= 10 * packet.duration
                packet.stream = stream
                new.mux(packet)
    site.files["/a.mp4"] = path.read_bytes()
    for item in ({}, {"video_start": 5.0, "video_end": 8.0}, {"keyframes": True}):
        with measuring():
            there = read_video({"video": f"{site.url}/a.mp4", **item})
            here = read_video({"video": str(path), **item})
        assert there[0].shape == here[0].shape
        assert there[1].info.frames == pytest.approx(here[1].info.frames, rel=0.01)
        assert there[2] == pytest.approx(here[2], rel=0.01)


def test_a_plan_copies_a_video_where_it_must(site, clip):
    """The server gives no parts of files."""
    with measuring():
        frames, _, _ = read_video({"video": f"{site.url}/whole.mp4"})
    assert frames.shape[2:] == (480, 640)
    assert site.sent >= len(clip)


def test_conditions_read_a_part_of_a_video(site, clip, tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip)
    header = read_header(f"{site.url}/a.mp4", with_size=True)
    assert header == read_header(str(tmp_path / "a.mp4"), with_size=True)
    assert site.sent < len(clip) // 2


def test_a_part_through_a_redirect_is_held_to_the_rules(site, limited):
    site.redirects["/far.mp4"] = f"{site.url}/a.mp4"
    assert read_header(f"{site.url}/far.mp4", with_size=True).width == 640
    site.redirects["/out.mp4"] = "file:///etc/passwd"
    with pytest.raises(VideoReadError, match="redirected to file://"):
        read_header(f"{site.url}/out.mp4", with_size=True)
    limited()
    with pytest.raises(VideoReadError, match="not on the public internet"):
        read_header(f"{site.url}/a.mp4", with_size=True)


def test_a_member_by_http_is_a_part_of_the_tar(site, clip, limited):
    site.files["/x.tar"] = shard_of(*((f"{n}.mp4", clip) for n in range(9)))
    address = f"{site.url}/x.tar?X-Amz-Signature=1#7.mp4"
    assert b"".join(open_blob(address).pieces()) == clip
    # The headers of nine members, with what is read ahead, and one member.
    assert site.sent < 9 * (300 << 10) + len(clip)
    before = site.sent
    assert b"".join(open_blob(address.replace("=1#7", "=2#8")).pieces()) == clip
    assert site.sent < before + len(clip) + 100
    limited()
    with pytest.raises(VideoReadError, match="not on the public internet"):
        open_blob(address)


def test_an_input_by_http_may_come_from_this_machine(site, limited):
    limited()  # what the configuration itself names is trusted
    site.files["/list.txt"] = b"a.mp4\n"
    place = f"{site.url}/list.txt?X-Amz-Signature=secret"
    assert lines(place) == [{"path": "a.mp4"}]
    config = load_config({"data": {"input_jsonl": place}})
    assert config.video_root == site.url
    again = load_config({"data": {"input_jsonl": place.replace("secret", "other")}})
    assert origin_of(again) == origin_of(config)
    assert "secret" not in str(origin_of(config))
    site.files["/list.txt"] = b"\xff\n"
    with pytest.raises(UserError, match=f"^{site.url}/list.txt, line 1: byte 0xff"):
        lines(place)


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("gs", {"GOOGLE_BASE_URL": "{url}", "GOOGLE_SKIP_SIGNATURE": "true"}),
        (
            "az",
            {
                "AZURE_STORAGE_ENDPOINT": "{url}",
                "AZURE_STORAGE_ACCOUNT_NAME": "user",
                "AZURE_SKIP_SIGNATURE": "true",
            },
        ),
    ],
)
def test_other_clouds_by_their_own_variables(site, clip, monkeypatch, scheme, names):
    for name, value in names.items():
        monkeypatch.setenv(name, value.format(url=site.url))
    site.files["/clips/a.mp4"] = clip
    stores._open_store.cache_clear()
    assert read_header(f"{scheme}://clips/a.mp4", with_size=True).width == 640
    assert b"".join(open_blob(f"{scheme}://clips/a.mp4").pieces()) == clip
    stores._open_store.cache_clear()


def test_no_credentials(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    stores._open_store.cache_clear()
    with pytest.raises(VideoReadError, match="The environment has no credentials for it"):
        open_blob("az://clips/a.mp4").read(0, 1)


# --- the hub --------------------------------------------------------------------------------------

OF_HUB = """
import json, sys
from video_pipeline.samples.sources import read_blocks
from video_pipeline.storage.opening import copy_of
from video_pipeline.video.header import read_header

place = "hf://datasets/lab/clips/"
names = b"".join(read_blocks(place)).decode()
header, whole = read_header(f"{place}cats/a.mp4", with_size=True), copy_of(f"{place}cats/a.mp4")
listed = b"".join(read_blocks(f"{place}list.txt")).decode()
print(json.dumps([names, listed, vars(header), whole.tell()]))
"""


def test_a_dataset_of_the_hub(clip, tmp_path):
    files = {"cats/a.mp4": clip, "README.md": b"x", "list.txt": b"cats/a.mp4"}
    with serving(Hub("lab/clips", files, "datasets")) as hub:
        environment = {**os.environ, **hub.environment(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", OF_HUB], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    names, listed, header, size = json.loads(done.stdout)
    (found,) = map(json.loads, names.splitlines())
    assert (found["path"], found["size"]) == ("cats/a.mp4", len(clip))
    assert json.loads(listed) == {"path": "cats/a.mp4"}
    assert (header["width"], size) == (640, len(clip))


# --- identity -------------------------------------------------------------------------------------

SIGNED = {
    "https://b.s3.amazonaws.com/a.mp4?X-Amz-Algorithm=A&X-Amz-Date=1&X-Amz-Signature=2": (
        "https://b.s3.amazonaws.com/a.mp4"
    ),
    "https://h/a.mp4?versionId=7&x-amz-signature=2#t": "https://h/a.mp4?versionId=7#t",
    "https://h/a.mp4?AWSAccessKeyId=A&Expires=1&Signature=2": "https://h/a.mp4",
    "https://h/a.mp4?GoogleAccessId=A&Expires=1&Signature=2&v=3": "https://h/a.mp4?v=3",
    "https://h/a.mp4?X-Goog-Expires=1&X-Goog-Signature=2": "https://h/a.mp4",
    "https://h/a.mp4?Policy=1&Key-Pair-Id=2&Signature=3": "https://h/a.mp4",
    "https://a.blob.core.windows.net/c/a.mp4?sv=2024&sr=b&se=2026&sp=r&sig=x": (
        "https://a.blob.core.windows.net/c/a.mp4"
    ),
    "https://h/a.mp4?token=1&id=2": "https://h/a.mp4?id=2",
    "https://user:word@h/a.mp4?id=2": "https://h/a.mp4?id=2",
    "http://user@h:80/b@c.mp4": "http://h:80/b@c.mp4",
}


@pytest.mark.parametrize("address", SIGNED)
def test_a_signature_is_no_part_of_the_name(address):
    assert stable_address(address) == SIGNED[address]
    assert stable_address([address, "a.png"]) == [SIGNED[address], "a.png"]


@pytest.mark.parametrize(
    "address",
    ["https://h/a?expires=1&id=2", "https://h/a?sv=1&st=2", "a?sig=1", "https://h/a", None],
)
def test_what_is_not_signed_stays(address):
    assert stable_address(address) is address


def test_the_password_of_a_root_is_in_no_file_of_the_run():
    """The summary has the origin, and is published."""
    roots = ({"video_root": "https://user:word@h/v"}, {"input_jsonl": "https://user:word@h/t.txt"})
    for data in roots:
        values = {"data": data, "stages": [{"name": "one"}]}
        for _, config in load_config(values).by_stage():
            origin = json.dumps(origin_of(config, with_input=False))
            assert "https://h" in origin
            assert "word" not in origin


def test_a_sample_signed_again_stays_finished(splitting):
    """Keys by content, and the request digest, which has the address in its messages."""

    def signed(day: int) -> list[dict]:
        return [
            {"path": f"https://h/{n}.mp4?X-Amz-Date={day}&X-Amz-Signature={n}{day}"} for n in "ab"
        ]

    splitting.run.configure(data={"id_field": None, "balance": "count"})
    splitting.run.edit_plugin(
        """"content": f"What happens? {sample.get('hint', '')}\"""",
        '"content": [{"type": "video", "video": sample["__video_uri"]}]',
    )
    first = splitting(signed(1))
    assert len(first.pending) == 2
    splitting.finish(first.pending[0])
    again = splitting(signed(2))
    assert len(again.pending) == 1
    paths = [entry.raw["path"] for chunk in again.chunks for entry in chunk]
    assert all("X-Amz-Date=2" in path for path in paths)
    # a list that names each video twice
    twice = splitting(signed(2) + signed(3))
    assert (twice.manifest.duplicates, len(twice.pending)) == (2, 1)
