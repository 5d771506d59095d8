"""Videos and images that are read by http(s): what goes well, what goes wrong, what is refused."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
import torch
from helpers import wait_until
from PIL import Image
from qwen_vl_utils import process_vision_info
from qwen_vl_utils import vision_process as qwen
from sounds import with_sound
from video_pipeline.config import Data
from video_pipeline.errors import UserError
from video_pipeline.storage import access, public_hosts, retries
from video_pipeline.storage import http as download
from video_pipeline.storage.retries import ATTEMPTS
from video_pipeline.testing.clips import write_clip
from video_pipeline.video.access import Access, read_image
from video_pipeline.video.errors import VideoReadError
from video_pipeline.video.reader import probe, read_chosen, read_video, register_reader

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.headers.append(dict(self.headers))
        name, _, rest = self.path.lstrip("/").partition("/")
        # a client that has seen enough hangs up
        with contextlib.suppress(ConnectionError):
            getattr(self, f"answer_{name.partition('?')[0].replace('.', '_')}")(rest)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    def answer_clip_mp4(self, _: str) -> None:
        self.send(self.server.clip)

    def answer_text(self, _: str) -> None:
        self.send(self.server.clip, Content_Type="text/html")

    def answer_image(self, _: str) -> None:
        self.send(self.server.image)

    def answer_nothing(self, _: str) -> None:
        self.send(b"")

    def answer_status(self, number: str) -> None:
        self.send(b"<h1>\x1b[31mno</h1>", int(number))

    def answer_chunked(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        clip = self.server.clip
        for piece in (clip[:100], clip[100:], b""):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

    def answer_slow(self, _: str) -> None:
        clip = self.server.clip
        self.send_response(200)
        self.send_header("Content-Length", str(len(clip)))
        self.end_headers()
        step = len(clip) // 5 + 1
        for start in range(0, len(clip), step):
            self.wfile.write(clip[start : start + step])
            time.sleep(0.1)

    def answer_drip(self, _: str) -> None:
        """For ever, but never so long without a byte that it would be given up."""
        self.send_response(200)
        self.end_headers()
        while not self.server.over.wait(0.1):
            self.wfile.write(b"x")

    def answer_stall(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x")
        self.server.over.wait(120)

    def answer_silence(self, _: str) -> None:
        self.server.over.wait(120)

    def answer_cut(self, _: str) -> None:
        clip = self.server.clip
        self.send_response(200)
        self.send_header("Content-Length", str(len(clip) + 1))
        self.end_headers()
        self.wfile.write(clip)
        self.close_connection = True

    def answer_cut_chunk(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ffff\r\nabc")
        self.close_connection = True

    def answer_endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(bytes(1 << 16))

    def answer_huge(self, _: str) -> None:
        """Says how much would come, and sends none of it."""
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.end_headers()
        self.server.over.wait(120)

    def answer_to(self, target: str) -> None:
        """Redirects, with a body that never ends."""
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(bytes(1 << 16))

    def answer_loop(self, _: str) -> None:
        self.send(b"", 301, Location="/loop")

    def answer_text_as_it_is(self, _: str) -> None:
        """Redirects to a path in UTF-8 that is not quoted."""
        self.send(b"", 302, Location="/clip.mp4?é 你".encode().decode("latin-1"))

    def answer_busy(self, rest: str) -> None:
        """Twice; the query is the header Retry-After."""
        status, _, after = rest.partition("?")
        if len(self.server.requests) % 3:
            self.send(b"", int(status), **({"Retry_After": after} if after else {}))
        else:
            self.send(self.server.clip)

    def answer_broken(self, _: str) -> None:
        """Twice a connection that breaks off before the answer."""
        if len(self.server.requests) < 3:
            self.close_connection = True
        else:
            self.send(self.server.clip)

    def answer_pieces(self, rest: str) -> None:
        """Breaks off after an eighth more of the clip than the last time."""
        clip, step = self.server.clip, len(self.server.clip) // 8 + 1
        ranges, _, changes = rest.partition("?")
        begin = int(self.headers.get("range", "bytes=0-")[6:-1]) if ranges else 0
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{len(self.server.requests) if changes else 1}"')
        self.send_header("Content-Length", str(len(clip) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(clip) - 1}/{len(clip)}")
        self.end_headers()
        end = min(len(clip), step * len(self.server.requests))
        self.server.sent += end - begin
        self.wfile.write(clip[begin:end])
        self.close_connection = True

    def answer_garbage(self, _: str) -> None:
        self.wfile.write(b"\x00\x01\x02 what?\r\n\r\n")
        self.close_connection = True

    def __getattr__(self, name: str) -> Callable[[str], None]:
        if name == "answer_http:":  # a proxy is asked with the whole address
            return self.answer_clip_mp4
        raise AttributeError(name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip and an image."""
    folder = tmp_path_factory.mktemp("served")
    write_clip(folder / "clip.mp4", width=64, height=64, seconds=1.0)
    Image.new("RGB", (64, 48), (255, 0, 0)).save(folder / "image.png")
    return folder


@pytest.fixture
def server(files: Path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server on every loopback address."""
    server = http.server.ThreadingHTTPServer(("", 0), Handler)
    server.clip = (files / "clip.mp4").read_bytes()
    server.image = (files / "image.png").read_bytes()
    server.requests, server.headers, server.sent = [], [], 0
    server.over = threading.Event()
    server.handle_error = lambda *_: None  # a client that hung up
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def url(server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server's address; this machine may be asked, and is asked again at once."""
    may(monkeypatch, allow_private_addresses=True, max_download_bytes=1_000_000)
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No proxy, a folder of our own for temporary files, in which none is left."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(qwen, "fetch_image", qwen.fetch_image)
    opened = os.listdir("/proc/self/fd")
    yield
    assert list(tmp_path.iterdir()) == []
    left = [f for f in os.listdir("/proc/self/fd") if f not in opened]
    assert not [f for f in left if str(tmp_path) in link(f)]


def link(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return ""


def may(monkeypatch: pytest.MonkeyPatch, **limits: object) -> None:
    """Set limits, from the defaults on."""
    monkeypatch.setattr(access, "_access", replace(Access.of(Data()), **limits))


# --- what goes well ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["clip.mp4", "text", "chunked", "slow", "to//clip.mp4?x=1"])
def test_a_video_is_read(server, url: str, files: Path, path: str) -> None:
    frames, metadata, _ = read_video({"video": f"{url}/{path}"})
    expected, expected_metadata, _ = read_video({"video": str(files / "clip.mp4")})
    assert torch.equal(frames, expected)
    assert metadata == expected_metadata
    assert len(server.requests) == 1 + path.startswith("to")  # once, however often it is opened


def test_sound_is_not_downloaded_by_itself(server, url, files: Path) -> None:
    clip = with_sound(files / "loud.mkv", range(0, 16_000, 160), 16_000)
    server.clip = clip.read_bytes()
    video = read_chosen({"video": f"{url}/clip.mp4"}, lambda *_: [0], sound_rate=16_000)
    assert len(video.sound) == 16_000
    assert len(server.requests) == 1


@pytest.mark.parametrize("name", ["mpeg2.ts", "b_frames.avi", "vp9.webm", "theirs.mkv"])
def test_without_a_name_the_container_is_known(server, url, files: Path, name: str) -> None:
    codec = {"mpeg2.ts": "mpeg2video", "b_frames.avi": "mpeg4", "vp9.webm": "libvpx-vp9"}
    clip = write_clip(files / name, codec=codec.get(name, "libx264"), width=64, height=64)
    server.clip = clip.read_bytes()
    assert probe(f"{url}/text") == probe(str(clip))


def test_the_scheme_may_be_in_capitals(url: str) -> None:
    assert probe(url.replace("http", "HTTP") + "/clip.mp4").frames == 24


def test_what_is_odd_in_an_address_is_quoted(server, url: str) -> None:
    assert probe(f'{url}/clip.mp4?a b"\U0001f600#part').frames == 24
    assert server.requests == ["/clip.mp4?a%20b%22%F0%9F%98%80"]


def test_what_is_odd_in_a_redirect_is_quoted(server, url: str) -> None:
    assert probe(f"{url}/text_as_it_is").frames == 24
    assert server.requests[-1] == "/clip.mp4?%C3%A9%20%E4%BD%A0"


def test_images_of_messages(url: str, files: Path) -> None:
    register_reader()
    items = [{"image": f"{url}/image"}, {"image_url": f"{url}/image"}]
    items.append({"video": [f"{url}/image", f"{url}/image"]})
    images, videos = process_vision_info([{"role": "user", "content": items}])
    local, _ = process_vision_info(
        [{"role": "user", "content": [{"image": str(files / "image.png")}]}]
    )
    assert [image.tobytes() for image in images] == [local[0].tobytes()] * 2
    assert len(videos[0]) == 2


def test_credentials_are_for_the_host_they_were_given_for(server, url: str) -> None:
    there = url.replace("//", "//us%40er:se%3Acret@")
    other = url.replace("127.0.0.1", "127.0.0.2")
    assert probe(f"{there}/to//to/{other}/clip.mp4").frames == 24
    sent = [headers.get("authorization") for headers in server.headers]
    assert sent == ["Basic dXNAZXI6c2U6Y3JldA=="] * 2 + [None]  # us@er:se:cret


def test_a_proxy_decides_itself(server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our rules hold for the hosts that we connect to: the proxy may well be a private one."""
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.server_port}")
    assert probe("http://user:secret@videos.invalid/a.mp4").frames == 24
    assert server.requests == ["http://videos.invalid/a.mp4"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(VideoReadError, match="not on the public internet"):
        probe(f"http://127.0.0.1:{server.server_port}/clip.mp4")
    assert len(server.requests) == 1


# --- what goes wrong ---------------------------------------------------------------------------

WRONG = {
    "status/404": "download: the server answered with status 404",
    "status/503": "download: the server answered with status 503",
    "status/206": "download: the server answered with status 206",
    "nothing": r"file is empty \(0 bytes\)",
    "image": r"an image \(PNG\), not a video: .*",
    "cut": "download: the connection broke off",
    "cut_chunk": "download: the connection broke off",
    "garbage": "download: the connection broke off",
    "stall": "download: nothing came for 0.5 s",
    "silence": "download: nothing came for 0.5 s",
    "endless": "download: larger than 0.001 GB, the limit data.max_download_gb",
    "huge": "download: larger than 0.001 GB, the limit data.max_download_gb",
    "loop": "download: redirected more than 10 times",
    "to/file:///etc/passwd": "download: redirected to file://, only http:// and https:// are read",
    "to/ftp://host/a.mp4": "download: redirected to ftp://, only http:// and https:// are read",
    "to/http://host:port/": "download: not a valid address",
}


@pytest.mark.parametrize("path", WRONG)
def test_an_error_says_what_was_wrong(
    server, url: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    if path in ("stall", "silence"):  # A server that answers may be slow: this machine may be busy.
        monkeypatch.setattr(download, "READ_SECONDS", 0.5)
    there = url.replace("//", "//user:secret@")
    with pytest.raises(VideoReadError, match=f"^{WRONG[path]}$") as caught:
        probe(f"{there}/{path}")
    assert "secret" not in str(caught.value)
    asked = {"loop": 11, **dict.fromkeys(("status/503", "cut", "cut_chunk", "garbage"), ATTEMPTS)}
    wait_until(lambda: server.requests, "the server has read the request")
    assert len(server.requests) == asked.get(path, 1)


@pytest.mark.parametrize("path", ["busy/503", "busy/429", "busy/500", "broken"])
def test_what_passes_is_tried_again(server, url: str, path: str) -> None:
    assert probe(f"{url}/{path}").frames == 24
    assert len(server.requests) == 3


def test_a_server_is_asked_again_when_it_says(server, url: str, monkeypatch) -> None:
    waits = []
    monkeypatch.setattr(retries.time, "sleep", lambda seconds: waits.append(seconds))
    assert probe(f"{url}/busy/503?20").frames == 24
    assert max(waits) >= 20
    with pytest.raises(VideoReadError, match="status 503"):
        probe(f"{url}/busy/503?3600")
    assert max(waits) < 60


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        *[(None, 0), ("7", 7), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
        ("Fri, 31 Dec 99999 23:59:59 GMT", 0),
    ],
)
def test_when_to_ask_again(said: str | None, seconds: float) -> None:
    assert retries.seconds_of(said) == seconds
    later = formatdate(time.time() + 1000, usegmt=True)
    assert 900 < retries.seconds_of(later) <= 1000


@pytest.mark.parametrize("path", ["pieces", "pieces/ranges"])
def test_a_download_goes_on_where_it_broke_off(server, url: str, path: str) -> None:
    """More often than a server that gives nothing would be asked."""
    assert probe(f"{url}/{path}").frames == 24
    assert len(server.requests) > ATTEMPTS
    if path == "pieces/ranges":
        assert server.sent == len(server.clip)


def test_two_versions_of_a_file_are_not_mixed(server, url: str) -> None:
    with pytest.raises(VideoReadError, match=r"^download: the file changed while it was read$"):
        probe(f"{url}/pieces/ranges?changes")


def test_nobody_listens(url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        there = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}/a.mp4"
        with pytest.raises(VideoReadError, match=r"^download: no connection \(Connection refused"):
            probe(there)


def test_a_host_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(VideoReadError, match=r"^download: the name of the host cannot be"):
        probe("http://user:secret@videos.invalid/a.mp4")


def test_no_tls(url: str) -> None:
    with pytest.raises(VideoReadError, match=r"^download: no secure connection") as caught:
        probe(url.replace("http:", "https:").replace("//", "//user:secret@") + "/clip.mp4")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://", "http:///a.mp4", "http://[half/a.mp4", "http://a:b"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(VideoReadError, match=r"^download: not a valid address$"):
        probe(address)


def test_a_full_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tempfile, "TemporaryFile", lambda buffering: open("/dev/full", "wb", buffering)
    )
    with pytest.raises(VideoReadError, match=r"TMPDIR .*: No space left on device$"):
        probe(f"{url}/clip.mp4")


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "0.0.0.0", "2130706433"])
def test_this_machine_is_not_asked(server, host: str) -> None:
    """By default. The server sees no request, neither for a video nor for an image."""
    there = f"http://{host}:{server.server_port}"
    with pytest.raises(VideoReadError, match=r"^download: the host is not on the public internet"):
        probe(f"{there}/clip.mp4")
    with pytest.raises(
        VideoReadError, match=r"^image: download: the host is not on the public int"
    ):
        read_image(f"{there}/image")
    assert server.requests == []


def test_no_byte_is_sent_to_a_refused_host() -> None:
    """Not even the first ones of TLS, which carry a name from the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with pytest.raises(VideoReadError, match="not on the public internet"):
            probe(f"https://127.0.0.1:{listening.getsockname()[1]}/a.mp4")
        connection, _ = listening.accept()
        with connection:
            assert connection.recv(100) == b""


@pytest.mark.parametrize("hook", ["_PublicHttp.connect", "_PublicTls.wrap_socket"])
def test_a_urllib3_that_does_not_call_a_hook_is_refused(server, monkeypatch, hook: str) -> None:
    """No foreign host is asked, and the run ends."""
    owner, name = hook.split(".")
    monkeypatch.delattr(getattr(public_hosts, owner), name)
    public_hosts.check_hooks.cache_clear()
    with pytest.raises(UserError, match=r"^urllib3 2.* is not supported: .* Tried: 2\.0\.2 to "):
        probe(f"http://127.0.0.1:{server.server_port}/clip.mp4")
    assert server.requests == []


def test_a_redirect_changes_no_rule(server, monkeypatch: pytest.MonkeyPatch) -> None:
    public_hosts.check_hooks()
    monkeypatch.setattr(public_hosts, "is_public", lambda address: address == "127.0.0.1")
    here, there = (f"http://127.0.0.{n}:{server.server_port}" for n in (1, 2))
    assert probe(f"{here}/to/{here}/clip.mp4").frames == 24
    server.requests.clear()
    with pytest.raises(VideoReadError, match="not on the public internet"):
        probe(f"{here}/to/{there}/clip.mp4")
    assert server.requests == [f"/to/{there}/clip.mp4"]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "240.0.0.1"),
        *("224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("fec0::1", "ff02::1", "2001:db8::1", "64:ff9b::a00:1", "::ffff:127.0.0.1"),
        *("::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::1"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not public_hosts.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001:813::200e"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert public_hosts.is_public(address)
