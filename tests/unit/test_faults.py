"""Whose fault a failure is, and what an engine died of."""

from __future__ import annotations

import errno
import json
import logging
import logging.config
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from video_pipeline.common.faults import is_environment_fault, is_refusal
from video_pipeline.engine.vllm import causes
from video_pipeline.workflow import weights


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "environment"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "environment"),
        (torch.distributed.DistBackendError("ncclUnhandledCudaError"), "environment"),
        (RuntimeError("NCCL communicator was aborted on rank 1"), "environment"),
        (RuntimeError("No CUDA GPUs are available"), "environment"),
        (ValueError("Free memory on device cuda:0 (3.1/79 GiB) on startup is less"), "environment"),
        (OSError(errno.ENOSPC, "No space left on device"), "environment"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "environment"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "environment"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "environment"),
        (RuntimeError("can't start new thread"), "environment"),
        (RuntimeError("Data processing error: CAS service error"), "environment"),  # hf_xet
        (OSError("Consistency check failed: file should be of size 5"), "environment"),
        (OSError("We couldn't connect to 'https://huggingface.co'"), "environment"),
        (caused(RuntimeError("it did not load"), TimeoutError()), "environment"),
        (ValueError("No available memory for the cache blocks"), "refusal"),
        (ValueError("Model architectures ['Foo'] are not supported for now"), "refusal"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "refusal"),
        (ImportError("flash_attn is not installed"), "refusal"),
        (caused(ValueError("not in the cache"), OfflineModeIsEnabled("offline")), "refusal"),
        (RuntimeError("shapes do not match"), "neither"),
    ],
)
def test_whose_fault(error, kind):
    assert is_environment_fault(error) == (kind == "environment")
    assert is_refusal(error) == (kind == "refusal")


# --- the hub -------------------------------------------------------------------------------------

COMMIT = "c" * 40
CUT = 0  # in place of a status: the connection ends within the answer
FETCH = """
import sys
from pathlib import Path

from video_pipeline.common import hub
from video_pipeline.config import load_config
from video_pipeline.errors import Failure
from video_pipeline.model.model import Model
from video_pipeline.model.processor import processor_folder
from video_pipeline.workflow.weights import fetch_weights

hub.WAITS = (0.0, 0.0)
config = load_config({"vllm": {"model": "some/model"}})
fetch = {
    "processor": lambda: processor_folder("some/model"),
    "weights": lambda: fetch_weights(config),
    "commit": lambda: Model.of(config).resolve_commit(Path(sys.argv[2])),
}[sys.argv[1]]
try:
    fetch()
    print("done")
except Failure as error:
    print(type(error).__name__, error, sep="\\n")
"""


@pytest.fixture
def hub():
    """A stand-in with two files; ``refusals`` are the statuses of its next answers."""
    refusals: list[int] = []
    names = ["config.json", "model.safetensors"]
    files = {
        "/api/models/some/model/revision/main": json.dumps(
            {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
        ),
        **{
            f"/api/models/some/model/tree/{revision}": json.dumps(
                [{"type": "file", "path": name, "size": 2, "oid": "1"} for name in names]
            )
            for revision in ("main", COMMIT)
        },
        **{f"/some/model/resolve/{COMMIT}/{name}": "{}" for name in names},
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            body = files.get(path, "").encode()
            status = 200 if path in files else 404
            is_cut = False
            if refusals and status == 200 and (refusals[0] != CUT or self.command == "GET"):
                status = refusals.pop(0)
            if status == CUT:
                status, is_cut = 200, True
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if status == 200 else 0))
            self.send_header("ETag", '"1"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if status == 200 and self.command == "GET":
                self.wfile.write(body[:-1] if is_cut else body)
                self.close_connection = is_cut

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.refusals = refusals
    yield server
    server.shutdown()


@pytest.mark.parametrize(
    ("what", "refusals", "said"),
    [
        ("processor", [503], "done"),
        ("processor", [429, 500], "done"),
        ("processor", [CUT], "done"),
        ("processor", [503] * 30, "EnvironmentFault"),
        ("processor", [CUT] * 100, "EnvironmentFault"),
        ("processor", [404] * 30, "UserError"),
        ("processor", [401] * 30, "UserError"),
        ("processor", [403] * 30, "UserError"),
        ("weights", [503, CUT], "done"),
        ("weights", [CUT] * 100, "EnvironmentFault"),
        ("commit", [429, 503], "done"),
        ("commit", [503] * 30, "EnvironmentFault"),
    ],
)
def test_a_hub_that_is_busy_is_asked_again(hub, tmp_path, what, refusals, said):
    hub.refusals += refusals
    done = fetch(what, hub.server_port, tmp_path)
    assert done.stdout.splitlines()[0] == said, done.stderr


def fetch(what: str, port: int, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run(
        [sys.executable, "-c", FETCH, what, str(home / "commits.json")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("what", ["processor", "weights", "commit"])
def test_a_hub_that_cannot_be_reached_is_asked_once_more(tmp_path, what):
    with socket.socket() as taken:  # Nobody else can get the port, and nobody listens there.
        taken.bind(("127.0.0.1", 0))
        done = fetch(what, taken.getsockname()[1], tmp_path)
    assert done.stdout.splitlines()[0] == "EnvironmentFault"
    assert "[Errno 111] Connection refused" in done.stdout
    assert "Got: " not in done.stdout
    assert "Fix the name" not in done.stdout
    assert done.stderr.count("Connection refused. The hub is asked again in 0 s") == 1


def test_files_that_the_hub_does_not_list_are_not_missing(tmp_path, monkeypatch):
    def busy(*_: object, **__: object) -> list[str]:
        raise ConnectionResetError("the hub is busy")

    def is_asked_again() -> bool:
        try:
            names = weights._names("some/model", None, None, tmp_path)
        except ConnectionResetError:
            return True
        assert set(names) == {path.name for path in tmp_path.iterdir()}
        return False

    monkeypatch.setattr("huggingface_hub.list_repo_files", busy)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert is_asked_again()
    (tmp_path / "model.bin").write_text("")
    assert not is_asked_again()
    # Half of the files that a name counts are not the whole.
    (tmp_path / "model-00001-of-00002.safetensors").write_text("")
    assert is_asked_again()
    (tmp_path / "model-00002-of-00002.safetensors").write_text("")
    assert not is_asked_again()
    # Nor are those of an index that names more.
    index = {"weight_map": {"a": "first.safetensors", "b": "second.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "first.safetensors").write_text("")
    assert is_asked_again()
    (tmp_path / "second.safetensors").write_text("")
    assert not is_asked_again()


# --- what an engine died of ----------------------------------------------------------------------


@pytest.fixture
def noted(tmp_path):
    """vLLM's logger, as its processes have it, and the file that errors are noted in."""
    path = tmp_path / "errors.jsonl"
    given = {"version": 1, "disable_existing_loggers": False, "loggers": {"vllm": {}}}
    logging.config.dictConfig(causes.noting(given, path))
    yield logging.getLogger("vllm.worker"), path
    logging.getLogger("vllm").handlers.clear()


def failed(logger: logging.Logger, error: Exception) -> None:
    try:
        raise error
    except Exception:
        logger.exception("failed")


def test_the_first_exception_is_the_cause(noted):
    logger, path = noted
    assert causes.root_cause(path) is None
    logger.error("Dumping input data")
    assert causes.root_cause(path).text == "Dumping input data"
    failed(logger, torch.OutOfMemoryError("CUDA out of\n  memory"))
    failed(logger, RuntimeError("a worker failed"))
    cause = causes.root_cause(path)
    assert cause.text == "OutOfMemoryError: CUDA out of memory"
    assert not cause.is_refusal


def test_an_error_of_hours_ago_is_not_the_cause(noted):
    logger, path = noted
    failed(logger, TypeError("of one request"))
    old = json.loads(path.read_text())
    path.write_text(json.dumps([*old[:-1], old[-1] - 3600]) + "\n")
    failed(logger, caused(RuntimeError("it did not load"), ValueError("no such format")))
    cause = causes.root_cause(path)
    assert cause.text == "RuntimeError: it did not load (because of ValueError: no such format)"


def test_a_logging_configuration_of_the_users_stays(tmp_path):
    given = {"version": 1, "handlers": {"mine": {}}, "loggers": {"vllm": {"handlers": ["mine"]}}}
    noting = causes.noting(given, tmp_path / "errors.jsonl")
    assert noting["loggers"]["vllm"]["handlers"] == ["mine", "note_errors"]
    assert given["loggers"]["vllm"]["handlers"] == ["mine"]
