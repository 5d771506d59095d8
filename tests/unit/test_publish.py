"""Publish: the files of a run in a folder, in S3 (moto's server) and on the hub (a stand-in)."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
import yaml
from helpers import SCRIPTS, wait_until
from hub import Hub, serving
from obstore.store import S3Store
from s3 import serving_s3
from video_pipeline.common.files import Seal
from video_pipeline.common.versions import SUMMARY
from video_pipeline.config import Config, load_config
from video_pipeline.errors import EnvironmentFault, UserError
from video_pipeline.publish import places
from video_pipeline.publish.publish import publish
from video_pipeline.run.layout import Layout
from video_pipeline.storage import stores

OUTPUT = b'{"__key": "0"}\n'
BESIDE = ["out.errors.jsonl", "out.jsonl", "out.report.html", "out.sha256", "out.summary.json"]
SHARDS = [f"out.dataset/data/train-0000{n}-of-00002.parquet" for n in range(2)]
ALL = sorted([*BESIDE, *SHARDS, "out.dataset/README.md"])


class Finished:
    """The files of a finished run, as its rules write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = Layout(folder / "results" / "out.jsonl", 1)
        data = self.layout.dataset / "data"
        data.mkdir(parents=True)
        for number in range(2):
            (data / f"train-0000{number}-of-00002.parquet").write_bytes(b"%d" % number * 4000)
        self.layout.card.write_text("---\nlicense: unknown\n---\n")
        self.layout.errors.write_bytes(b"")
        self.layout.report.write_text("<html>")
        self.write(OUTPUT)

    def write(self, output: bytes) -> None:
        """Write the output, and the summary about it."""
        self.layout.output.write_bytes(output)
        counts = ("distinct", "ok", "error", "errors_by_stage", "truncated_at")
        others = ("task", "model", "usage", "cost", "throughput", "journal", "splits")
        summary = {
            "version": SUMMARY,
            "output_file": Seal.of(self.layout.output)._asdict(),
            "samples": dict.fromkeys(counts, 0),
            **dict.fromkeys(others),
        }
        self.layout.summary.write_text(json.dumps(summary))

    def config(self, *places: object) -> Config:
        """A configuration that publishes to ``places``."""
        run = {"publish": list(map(str, places)), "formats": ["jsonl", "parquet"]}
        return load_config({"data": {"output_jsonl": str(self.layout.output)}, "run": run})

    def publish(self, *places: object) -> None:
        """Publish to ``places``."""
        publish(self.config(*places), self.layout)

    def command(self, *places: object) -> list[str]:
        """The command line of the rule."""
        path = self.folder / "my.yaml"
        path.write_text(self.config(*places).to_yaml())
        return [sys.executable, str(SCRIPTS / "publish.py"), "--config", str(path)]


@pytest.fixture
def finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Finished:
    caplog.set_level("INFO")
    return Finished(tmp_path)


def sent(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The files that were sent since this was asked last."""
    words = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return [line.split(": ")[1].split()[0] for line in words if "has arrived" in line]


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def check_sums(folder: Path) -> None:
    """What ``sha256sum`` says about a folder."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "out.sha256"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# --- a folder -------------------------------------------------------------------------------------


def test_a_folder_gets_all_files_and_their_checksums(finished, tmp_path, caplog):
    there = tmp_path / "there"
    finished.publish(there)
    assert names_in(there) == sorted([*ALL, "out.dataset"])
    check_sums(there)
    # Whoever finds the checksums finds the rest.
    assert sent(caplog)[-2:] == ["out.summary.json", "out.sha256"]
    receipt = json.loads(finished.layout.receipt.read_text())
    assert (receipt["version"], receipt["published"][0]["place"]) == (1, str(there))
    described = {file["name"]: file for file in receipt["published"][0]["files"]}
    assert sorted([*described, "out.sha256"]) == ALL
    assert described["out.jsonl"] == {
        "name": "out.jsonl",
        "bytes": len(OUTPUT),
        "sha256": hashlib.sha256(OUTPUT).hexdigest(),
    }


def test_only_what_differs_is_sent_again(finished, tmp_path, caplog):
    there = tmp_path / "there"
    finished.publish(there)
    sent(caplog)
    finished.publish(there)
    assert sent(caplog) == []

    finished.write(b'{"__key": "1"}\n')
    finished.publish(there)
    assert sent(caplog) == ["out.jsonl", "out.summary.json", "out.sha256"]
    assert (there / "out.jsonl").read_bytes() == b'{"__key": "1"}\n'

    (there / "out.jsonl").write_bytes(b'{"__key": "2"}\n')  # of the same size
    finished.publish(there)
    assert sent(caplog) == ["out.jsonl"]
    check_sums(there)


def test_what_would_pass_for_a_part_of_the_output_is_removed(finished, tmp_path):
    there = tmp_path / "there"
    finished.publish(there)
    for name in ("out.videos.jsonl", "out.dataset/data/train-00000-of-00001.parquet"):
        (there / name).write_text("of an earlier output")
    own = ["out.dataset/data/notes.parquet", "out.dataset/data/en/train-00000-of-00001.parquet"]
    for name in own:
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).write_text("the user's own")
    finished.publish(there)
    assert names_in(there) == sorted([*ALL, "out.dataset", *own])


def test_an_output_that_is_not_the_run_s_is_not_published(finished, tmp_path):
    finished.layout.output.write_bytes(b"edited")
    with pytest.raises(UserError, match="it has changed since"):
        finished.publish(tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert not finished.layout.receipt.exists()


def test_a_place_that_cannot_be_written(finished, tmp_path):
    (tmp_path / "there").write_text("a file")
    with pytest.raises(UserError, match=rf"run\.publish: {tmp_path}/there: .*run the same command"):
        finished.publish(tmp_path / "there")
    assert not finished.layout.receipt.exists()


# --- S3 -------------------------------------------------------------------------------------------


class Between(http.server.ThreadingHTTPServer):
    """A proxy before S3.

    Attributes:
        requests: The method and the path of each request so far.
        refusals: The answers to the next requests that write, which are not passed on.
        change: What becomes of what is written at a path.
        hides_tags: Whether tags are not those of the content, as with a key of the user's own.
        held: The end of a path at which writing never ends.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.port = port
        self.requests: list[tuple[str, str]] = []
        self.refusals: list[int] = []
        self.change: Callable[[str, bytes], bytes] = lambda path, body: body
        self.hides_tags = False
        self.held = ""
        self.never = threading.Event()


class _Passing(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        server, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.requests.append((self.command, self.path))
        if self.command in ("PUT", "POST"):
            if server.held and self.path.endswith(server.held):
                server.never.wait()
            if server.refusals:
                self.send_response(server.refusals.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = server.change(self.path, body)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() == "etag" and server.hides_tags:
                value = f'"{hashlib.sha1(value.encode()).hexdigest()}"'
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        self.wfile.write(content)
        connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[S3Store]:
    with serving_s3(tmp_path_factory.mktemp("moto") / "log", "captions") as store:
        yield store


@pytest.fixture
def between(bucket: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Between]:
    """The proxy, before an empty bucket."""
    obstore.delete(bucket, [meta["path"] for some in obstore.list(bucket) for meta in some])
    server = Between(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    stores._open_store.cache_clear()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.never.set()
    server.shutdown()
    thread.join()
    server.server_close()
    stores._open_store.cache_clear()


def objects(bucket: S3Store) -> dict[str, bytes]:
    found = [meta["path"] for some in obstore.list(bucket) for meta in some]
    return {name: bytes(obstore.get(bucket, name).bytes()) for name in found}


def test_a_bucket_gets_all_files(finished, bucket, between, caplog):
    obstore.put(bucket, "a/b/out.dataset/data/train-00000-of-00009.parquet", b"earlier")
    obstore.put(bucket, "other.txt", b"other")
    finished.publish("s3://captions/a/b/")
    found = objects(bucket)
    assert found.pop("other.txt") == b"other"
    assert sorted(found) == [f"a/b/{name}" for name in ALL]
    assert found["a/b/out.jsonl"] == OUTPUT
    assert sent(caplog)[-2:] == ["out.summary.json", "out.sha256"]
    assert not [path for method, path in between.requests if method == "GET" and "?" not in path]

    finished.publish("s3://captions/a/b")
    assert sent(caplog) == []
    obstore.put(bucket, "a/b/out.jsonl", OUTPUT[::-1])  # of the same size
    finished.publish("s3://captions/a/b")
    assert sent(caplog) == ["out.jsonl"]


def test_a_large_file_goes_in_parts(finished, bucket, between, monkeypatch, caplog):
    monkeypatch.setattr(places, "_PART_BYTES", 5 << 20)
    large = os.urandom(1 << 20) * 11
    finished.write(large)
    finished.publish("s3://captions")
    assert objects(bucket)["out.jsonl"] == large
    parts = [path for method, path in between.requests if method == "PUT" and "partNumber" in path]
    assert len(parts) == 3
    sent(caplog)
    finished.publish("s3://captions")
    assert sent(caplog) == []
    # Its tag is known: it was not read back.
    assert ("GET", "/captions/out.jsonl") not in between.requests


def test_a_store_with_other_tags_is_read_back(finished, bucket, between, caplog):
    between.hides_tags = True
    finished.publish("s3://captions")
    assert ("GET", "/captions/out.jsonl") in between.requests
    sent(caplog)
    finished.publish("s3://captions")
    assert sent(caplog) == []
    obstore.put(bucket, "out.jsonl", OUTPUT[::-1])
    finished.publish("s3://captions")
    assert sent(caplog) == ["out.jsonl"]


@pytest.mark.parametrize("hides_tags", [False, True])
def test_what_arrives_damaged_is_noticed(finished, bucket, between, hides_tags):
    between.hides_tags = hides_tags
    between.change = lambda path, body: body[::-1] if path.endswith("out.jsonl") else body
    with pytest.raises(EnvironmentFault, match=r"what arrived as out\.jsonl is not what was sent"):
        finished.publish("s3://captions")
    assert "out.summary.json" not in objects(bucket)
    assert not finished.layout.receipt.exists()


def test_a_busy_store_is_asked_again(finished, bucket, between):
    between.refusals = [503, 429, 500]
    finished.publish("s3://captions")
    assert between.refusals == []
    assert sorted(objects(bucket)) == ALL


def test_a_publish_that_was_killed_goes_on(finished, bucket, between):
    between.held = "out.report.html"
    command = finished.command("s3://captions")
    with subprocess.Popen(command, cwd=finished.folder, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: ("PUT", "/captions/out.report.html") in between.requests, "it sends it")
        process.kill()
    assert "out.jsonl" in objects(bucket)
    assert not {"out.summary.json", "out.sha256"} & objects(bucket).keys()
    between.held = ""
    between.requests.clear()
    finished.publish("s3://captions")
    written = [path.removeprefix("/captions/") for way, path in between.requests if way == "PUT"]
    assert written == ["out.report.html", "out.summary.json", "out.sha256"]
    assert sorted(objects(bucket)) == ALL


def test_a_refusal_says_where_and_what_next(finished, between):
    with pytest.raises(UserError, match=r"run\.publish: s3://nothere/x: the store: .*same command"):
        finished.publish("s3://nothere/x")


def test_no_credentials(finished, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    stores._open_store.cache_clear()
    with pytest.raises(UserError, match="The environment has no credentials for it"):
        finished.publish("az://captions")


# --- the hub --------------------------------------------------------------------------------------

ON_HUB = [*BESIDE, "README.md", *(name.removeprefix("out.dataset/") for name in SHARDS)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without the dataset ``lab/captions``, and with a user who may make it."""
    from huggingface_hub import constants

    with serving(Hub("lab/captions", {}, "datasets")) as hub:
        hub.created = None
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("video_pipeline.common.hub.WAITS", (0.0, 0.0))
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        yield hub


def test_a_dataset_of_the_hub(finished, hub, caplog):
    finished.publish("hf://datasets/lab/captions")
    assert hub.created["visibility"] == "private"
    assert sorted(hub.files) == sorted(ON_HUB)
    assert hub.files["out.jsonl"] == OUTPUT
    assert hub.files["README.md"] == finished.layout.card.read_bytes()
    assert hub.commits == ["out, by video-pipeline"]
    sent(caplog)

    finished.publish("hf://datasets/lab/captions")
    assert (sent(caplog), len(hub.commits)) == ([], 1)

    hub.files["data/train-00000-of-00009.parquet"] = b"earlier"
    hub.files["notes.md"] = b"the user's own"
    hub.files["out.jsonl"] = OUTPUT[::-1]
    finished.publish("hf://datasets/lab/captions")
    assert (sent(caplog), len(hub.commits)) == (["out.jsonl"], 2)
    assert sorted(hub.files) == sorted([*ON_HUB, "notes.md"])
    assert hub.files["out.jsonl"] == OUTPUT


def test_a_folder_of_a_dataset(finished, hub):
    hub.created = {}
    finished.publish("hf://datasets/lab/captions@main/v1")
    assert hub.created == {}
    assert sorted(hub.files) == sorted(f"v1/{name}" for name in ON_HUB)


def test_a_busy_hub_is_asked_again(finished, hub):
    hub.refusals = [503, 429]
    finished.publish("hf://datasets/lab/captions")
    assert hub.commits == ["out, by video-pipeline"]
    hub.refusals = [500] * 3
    finished.write(b'{"__key": "1"}\n')
    with pytest.raises(EnvironmentFault, match=r"hf://datasets/lab/captions: .*500.*same command"):
        finished.publish("hf://datasets/lab/captions")


def test_the_hub_wants_a_token(finished, hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"lab/captions: .*401.*no credentials"):
        finished.publish("hf://datasets/lab/captions")


# --- the configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("ftp://host/a", "expected a local folder, or one at s3://"),
        ("https://host/a", "expected a local folder, or one at s3://"),
        ("s3://", "expected s3://bucket/folder"),
        ("s3://user:word@b/a", "expected s3://bucket/folder"),
        ("s3://b/../a", "names no folder"),
        ("s3://b//a", "names no folder"),
        ("gs://b/a?versionId=1", "names no folder"),
        ("hf://lab/captions", "expected hf://datasets/owner/name"),
        ("hf://datasets/captions", "expected hf://datasets/owner/name"),
        ("hf://datasets/a/b/../c", "names no folder"),
        ("results", "the folder of data.output_jsonl"),
        (7, "expected a path"),
    ],
)
def test_places_that_are_none(place, why):
    run = {"publish": [place], "formats": ["jsonl", "parquet"]}
    with pytest.raises(UserError, match=rf"run\.publish.*{why}"):
        load_config({"run": run})


def test_a_link_to_the_folder_of_the_output_is_no_place(finished, tmp_path):
    """There the Parquet files of an export would pass for those of an earlier output."""
    (tmp_path / "link").symlink_to(finished.layout.output.parent)
    with pytest.raises(UserError, match=r"link' is the folder of data\.output_jsonl"):
        finished.config(tmp_path / "link")


def test_a_dataset_needs_its_card():
    with pytest.raises(UserError, match=r"run\.formats to \[jsonl, parquet\]"):
        load_config({"run": {"publish": ["hf://datasets/lab/captions"]}})


def test_the_output_itself_lies_in_a_file_system():
    with pytest.raises(UserError, match=r"data\.output_jsonl: .*set run\.publish"):
        load_config({"data": {"output_jsonl": "s3://captions/out.jsonl"}})


def test_places_of_stages():
    run = {"publish": ["s3://captions", "there"]}
    stages = [{"name": "a"}, {"name": "b", "run": {"publish": ["there/b", "s3://b"]}}]
    config = load_config({"run": run, "stages": stages}).placed(lambda path: f"prefix/{path}")
    assert [stage.run.publish for _, stage in config.by_stage()] == [
        ["s3://captions", "prefix/there"],
        ["prefix/there/b", "s3://b"],
    ]
    run = {"publish": ["hf://datasets/a/b"], "formats": ["jsonl", "parquet"]}
    config = load_config({"run": run, "stages": [{"name": "a"}, {"name": "b"}]})
    with pytest.raises(UserError, match=r"a and b publish to the same place, hf://datasets/a/b"):
        config.by_stage()


def test_places_change_no_other_job(finished, tmp_path):
    one, other = finished.config(tmp_path / "a"), finished.config(tmp_path / "b")
    assert yaml.safe_load(one.to_yaml())["run"]["publish"] == [str(tmp_path / "a")]
    from video_pipeline.run.sharding import Sharding
    from video_pipeline.run.stages import Stage

    first, second = (Stage("", config, Sharding(1), finished.layout) for config in (one, other))
    assert first.digest("run") == second.digest("run")
    assert first.places_digest != second.places_digest
