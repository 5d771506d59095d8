"""Remote videos are fetched ahead of decoding: each once, in order, with the errors of before."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import re
import resource
import signal
import tarfile
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import psutil
import pytest
from helpers import Splitter, read_jsonl, wait_until
from video_pipeline.infer.infer import infer
from video_pipeline.infer.prefetch import MOST_UNUSED
from video_pipeline.journal.format import attempt_prefix
from video_pipeline.run.statistics import read_statistics
from video_pipeline.storage import fetched, retries
from video_pipeline.storage.access import Access
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.fetcher import FetcherProcess, Room
from video_pipeline.storage.opening import copy_of
from video_pipeline.storage.retries import PER_HOST

# A dataset that answers with what its files hold.
READS = """

from video_pipeline.video.access import MediaFile


class Reading(Plain):
    def __getitem__(self, i):
        item = super().__getitem__(i)
        places = self.samples[i]["__video_uri"]
        read = []
        for place in places if isinstance(places, list) else [places]:
            with MediaFile(place) as file:
                read.append(Path(file.path).read_text())
        item["llm_input"]["prompt"] = " ".join(read) * 10
        return item


register_dataset("reading")(Reading)
Ask.dataset_name = "reading"
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives ``server.files`` and parts of them; a query says what goes wrong first."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name, _, query = self.path.partition("?")
        self.server.requests.append(self.path)
        if query in self.server.at:
            self.server.at[query]()
        first = self.server.requests.count(self.path) == 1
        if name not in self.server.files:
            self.answer(404, b"")
        elif query == "away":
            self.answer(503, b"", Retry_After="3600")
        elif query == "busy" and first:
            self.answer(429, b"", Retry_After="0")
        else:
            data = self.server.files[name]
            part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
            begin, end = 0, len(data)
            if part:
                begin, end = int(part[1]), min(end, int(part[2] or end - 1) + 1)
            where = {"Content_Range": f"bytes {begin}-{end - 1}/{len(data)}"} if part else {}
            sent = data[begin : (begin + end) // 2] if query == "cut" and first else data[begin:end]
            self.answer(206 if part else 200, sent, Content_Length=str(end - begin), **where)
            self.close_connection = True

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch, tmp_path) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of a few files; ``at`` holds what is done at a query. Temporary files lie in
    ``temporary``, where none is left."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {f"/{n}": f"video {n}".encode() * 1000 for n in range(40)}
    server.requests, server.at, server.temporary = [], {}, tmp_path / "temporary"
    server.temporary.mkdir()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("TMPDIR", str(server.temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    assert not list(server.temporary.iterdir())


@pytest.fixture
def reading(splitting: Splitter, site) -> Splitter:
    """A run whose dataset reads what is on the site."""
    run = splitting.run
    run.write_plugin((run.folder / "plugin.py").read_text(encoding="utf-8") + READS)
    run.configure(
        data={"allow_private_addresses": True, "max_download_gb": 0.001}, run={"max_error_rate": 1}
    )
    return splitting


def of(paths: list) -> list[dict]:
    return [{"id": str(number), "path": path} for number, path in enumerate(paths)]


def inferred(splitting: Splitter, paths: list, *, plain: bool = False) -> Counter[str]:
    """The records of an empty journal."""
    splitting(of(paths), 1, run_id=f"plain {plain}")
    infer(splitting.run.config, splitting.layout, 0, threads=2, plain=plain)
    attempt = attempt_prefix(splitting.manifest.split_id, 0)
    (journal,) = Path(splitting.manifest.journal).glob(f"{attempt}*.jsonl")
    return Counter(json.dumps(line) for line in read_jsonl(journal) if "__key" in line)


def containers(site) -> list[str]:
    """Members of a tar and rows of Parquet on the site."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in site.files.items():
            info = tarfile.TarInfo(f"a{name}.mp4")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    table = io.BytesIO()
    pandas.DataFrame({"video": list(site.files.values())}).to_parquet(table)
    site.files |= {"/x.tar": stream.getvalue(), "/x.parquet": table.getvalue()}
    members = [f"{site.url}/x.tar#a/{n}.mp4" for n in (3, 1, 30)]
    return [*members, *(f"{site.url}/x.parquet#{n}:video" for n in range(5))]


@pytest.mark.slow
def test_both_loops_read_the_same(reading, site, tmp_path, monkeypatch):
    """The plain loop downloads in place."""
    site.files["/large"] = bytes(2_000_000)
    (tmp_path / "here").write_text("video here")
    good = [f"{site.url}/{n}" for n in range(12)]
    paths = [
        *good,
        *containers(site),
        *(f"{site.url}/1?busy", f"{site.url}/2?cut", f"{site.url}/3?away"),
        *(f"{site.url}/gone", f"{site.url}/large"),
        *(f"{site.url}/x.tar#gone", f"{site.url}/x.parquet#99:video", str(tmp_path / "here")),
        [f"{site.url}/20", f"{site.url}/21"],
        [f"{site.url}/22", f"{site.url}/gone"],
    ]
    streamed = inferred(reading, paths)
    asked = Counter(site.requests)
    assert [asked[f"/{n}"] for n in [*range(12), 20, 21, 22]] == [1] * 15
    assert asked["/2?cut"] == asked["/1?busy"] == 2
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    assert inferred(reading, paths, plain=True) == streamed
    errors = [json.loads(record)["__error"] for record in streamed if "__error" in record]
    assert {(e["stage"], e["type"]) for e in errors} == {("read", "VideoReadError")}
    assert len(errors) == 6


@pytest.mark.slow
def test_the_samples_of_one_video_share_a_download(reading, site):
    windows = [{"id": str(n), "path": f"{site.url}/1", "video_start": float(n)} for n in range(6)]
    reading(windows, 1, run_id="windows")
    infer(reading.run.config, reading.layout, 0, threads=2)
    assert site.requests == ["/1"]


@pytest.mark.slow
def test_what_no_dataset_reads_is_soon_not_fetched(splitting, site):
    splitting.run.configure(data={"allow_private_addresses": True})
    assert len(inferred(splitting, [f"{site.url}/{n}" for n in range(40)])) == 40
    assert len(site.requests) <= MOST_UNUSED + 4


def fetchers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # It has just ended.
            if "fetcher" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
def test_a_fetcher_that_dies_costs_nothing(reading, site):
    def kill() -> None:
        for process in fetchers():
            process.kill()

    site.at["kill"] = kill
    paths = [f"{site.url}/{n}{'?kill' if n in (3, 9) else ''}" for n in range(20)]
    records = inferred(reading, paths)
    assert len(records) == 20
    assert not any("__error" in record for record in records)
    assert not fetchers()


@pytest.mark.slow
def test_time_without_a_file_is_charged_to_the_network(reading, site):
    """The last download waits until all other samples are answered."""
    site.at["last"] = lambda: wait_until(lambda: len(reading.run.answers()) == 3, "the others")
    reading(of([f"{site.url}/{n}{'?last' if n == 3 else ''}" for n in range(4)]), 1)
    infer(reading.run.config, reading.layout, 0, threads=2)
    (job,) = read_statistics(Path(reading.manifest.journal))
    assert 0 < job["limits"]["network"] <= job["limits"]["decode"]
    assert sum(job["series"]["network"]) > 0


@pytest.mark.slow
def test_a_job_is_killed_while_it_fetches(reading, site):
    """Nothing is left, and nothing is inferred twice."""
    held, go_on = threading.Event(), threading.Event()
    site.at["held"] = lambda: (held.set(), go_on.wait())
    # Were all connections held, an earlier sample might wait for one, until a held one times out.
    num_held = PER_HOST // 2
    paths = [f"{site.url}/{n}{'?held' if n >= 20 - num_held else ''}" for n in range(20)]
    reading(of(paths), 1)
    run = reading.run
    job = run.start("infer.py", "--num-shards", "1", "--rank", "0", "--threads", "2")
    wait_until(lambda: held.is_set() and len(run.answers()) == 20 - num_held, "the rest is done")
    processes = psutil.Process(job.pid).children(recursive=True)
    assert [p for p in processes if "fetcher" in " ".join(p.cmdline())]
    job.send_signal(signal.SIGKILL)
    job.wait()
    wait_until(lambda: not any(p.is_running() for p in processes), "its processes are gone")
    assert not list(site.temporary.iterdir())
    go_on.set()
    run.script("infer.py", "--num-shards", "1", "--rank", "0", "--threads", "2")
    assert run.answers() == dict.fromkeys(map(str, range(20)), 1)


# --- the fetcher alone ----------------------------------------------------------------------------


ANYWHERE = Access(roots=None, max_download_bytes=10**6, allow_private_addresses=True)


@contextlib.contextmanager
def fetching(access: Access, max_bytes: float = 1e9) -> Iterator[FetcherProcess]:
    process = FetcherProcess(access, max_bytes, 30.0)
    try:
        yield process
    finally:
        process.stop()


def test_the_limits_hold_in_the_fetcher(site):
    """A host that is not public, a redirect, a folder of a store, a file that is too large."""
    access = Access(roots=("s3://mine/",), max_download_bytes=10, allow_private_addresses=False)
    addresses = (f"{site.url}/1", "s3://other/a", "s3://mine/../other/a", "ftp://host/a", "hf://a")
    with fetching(access) as process:
        process.pipe.send((1, addresses))
        _, found = process.pipe.recv()
    assert site.requests == []
    for address in addresses:
        with pytest.raises(VideoReadError) as caught:
            copy_of(address, access)
        assert found[address].error == str(caught.value)


def test_a_file_is_gone_when_it_is_dropped_or_its_fetcher_is(site):
    address = f"{site.url}/1"
    with fetching(ANYWHERE) as process:
        for ticket, end in enumerate((lambda: process.pipe.send((0, ())), process.stop)):
            process.pipe.send((ticket, (address,)))
            _, found = process.pipe.recv()
            with fetched.reading(found) as reading:
                with copy_of(address) as file:
                    assert file.read() == site.files["/1"]
                assert reading.used
                end()
                wait_until(lambda: fetched.opened(address) is None, "it is gone")


def test_a_file_of_another_process_is_not_taken_for_it(tmp_path):
    (tmp_path / "other").write_text("other")
    with fetched.reading({"a": fetched.Fetched(str(tmp_path / "other"), (1, 2))}):
        assert fetched.opened("a") is None


def test_a_server_that_drips_ends_the_fetcher_and_no_more(site):
    """Its other files are fetched meanwhile."""
    over = threading.Event()
    site.at["drip"] = lambda: over.wait(30)
    process = FetcherProcess(ANYWHERE, 1e9, 5)  # Long enough for the other files.
    try:
        # The first download imports what the others need, which may take its time.
        for ticket, name in enumerate(("1", "2?drip", "3")):
            process.pipe.send((ticket, (f"{site.url}/{name}",)))
            if ticket != 1:
                assert process.pipe.recv()[0] == ticket
        with pytest.raises(EOFError):
            process.pipe.recv()
    finally:
        over.set()
        process.stop()


def waiting(call: Callable[..., None], *arguments: int) -> threading.Thread:
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def test_bytes_are_bounded():
    room = Room(10)
    room.enter(1)
    room.take(1, 6)
    room.finish(1)
    second = waiting(room.enter, 2)  # It will probably be as large.
    wait_until(lambda: room._waiting, "the second waits")
    assert second.is_alive()
    room.leave(1)
    second.join()
    room.take(2, 100)  # Nobody else would make room for it.
    third = waiting(room.enter, 3)
    wait_until(lambda: room._waiting, "the third waits")
    room.finish(2)
    assert third.is_alive()
    room.leave(2)
    third.join()


def test_who_waits_for_a_connection_stops_nobody():
    """The first download has no byte yet, and needs what the second one holds."""
    room = Room(10)
    room.enter(1)
    room.enter(2)
    waiting(room.take, 2, 100).join(10)
    assert room._taken[2] == 100


def test_one_large_file_does_not_slow_down_all_that_follow():
    room = Room(100)
    for ticket, num_bytes in enumerate([1000, 2, 2, 2, 2, 2, 2]):
        room.enter(ticket)
        room.take(ticket, num_bytes)
        room.finish(ticket)
        room.leave(ticket)
    room.enter(8)
    waiting(room.enter, 9).join(10)
    assert 9 in room._taken


def test_what_cannot_be_written_is_left_to_the_reader(site):
    site.files["/large"] = bytes(900_000)
    with fetching(ANYWHERE) as process:
        resource.prlimit(process._process.pid, resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        process.pipe.send((1, (f"{site.url}/large",)))
        assert process.pipe.recv() == (1, {})
