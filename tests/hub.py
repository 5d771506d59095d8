"""A stand-in for the Hugging Face hub: one repository, served on loopback, with all requests
counted. It takes commits by the protocol of https://huggingface.co/docs/hub/api and git-lfs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Attributes:
    files: Name -> content of the model's files.
    token: What a reader must show; None if the model is not gated.
    served: How often each file was sent.
    address: For ``HF_ENDPOINT``.
    created: How the repository was asked for, if it was not there; None: it is not there.
    stored: Contents that were uploaded as large files, by their SHA-256.
    commits: The titles of the commits.
    refusals: The answers to the next requests for a commit, which are not made.
    """

    def __init__(self, model: str, files: dict[str, bytes], kind: str = "models") -> None:
        """``kind``: of the repository, ``models`` or ``datasets``."""
        self.model = model
        self.kind = kind
        self.files = files
        self.token: str | None = None
        self.served: Counter[str] = Counter()
        self.address = ""
        self.created: dict[str, object] | None = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.refusals: list[int] = []

    def environment(self, home: Path) -> dict[str, str]:
        """Variables with which huggingface_hub asks this hub, with a cache in ``home``."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            # It may be slow on a busy machine: who asks again counts twice.
            "HF_HUB_DOWNLOAD_TIMEOUT": "120",
            "HF_HUB_ETAG_TIMEOUT": "120",
        }


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer for ``hub`` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                refused = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
                return self._send(403, b"", refused, with_body)
            if hub.created is None:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body)
            api, resolve = f"/api/{hub.kind}/{hub.model}/", f"/{hub.model}/resolve/"
            if path.startswith(f"{api}revision/") or f"{path}/" == api:
                names = [{"rfilename": name} for name in hub.files]
                return self._json({"id": hub.model, "sha": COMMIT, "siblings": names}, with_body)
            if path.startswith(f"{api}tree/"):
                tree = [_entry(*item, hub.stored) for item in hub.files.items()]
                return self._json(tree, with_body)
            name = path.partition(resolve)[2].partition("/")[2]
            if name not in hub.files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
            content = hub.files[name]
            if part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                hub.served[f"parts of {name}"] += 1
                return self._send(206, content[int(part[1]) : int(part[2]) + 1], {}, with_body)
            if with_body:
                hub.served[name] += 1
                time.sleep(0.5)  # so that others come while it is on its way
            headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, with_body)

        def do_PUT(self) -> None:
            content = self._body()
            hub.stored[hashlib.sha256(content).hexdigest()] = content
            self._send(200, b"", {}, True)

        def do_POST(self) -> None:
            path, body = unquote(self.path.partition("?")[0]), self._body()
            if not self.headers.get("Authorization"):
                return self._send(401, b"", {"X-Error-Message": "Invalid credentials"}, True)
            if path == "/api/repos/create":
                hub.created = json.loads(body)
                return self._json({"url": f"{hub.address}/{hub.kind}/{hub.model}"}, True)
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []}, True)
            if "/preupload/" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                files = [
                    {
                        "path": name,
                        "uploadMode": "lfs" if name.endswith(".parquet") else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for name in names
                ]
                return self._json({"files": files}, True)
            if path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                for entry in objects:
                    if entry["oid"] not in hub.stored:
                        upload = {"href": f"{hub.address}/upload/{entry['oid']}"}
                        entry["actions"] = {"upload": upload}
                return self._json({"transfer": "basic", "objects": objects}, True)
            assert "/commit/" in path, path
            if hub.refusals:
                return self._send(hub.refusals.pop(0), b"", {}, True)
            for line in body.splitlines():
                self._commit(**json.loads(line))
            url = f"{hub.address}/{hub.kind}/{hub.model}/commit/{COMMIT}"
            return self._json({"commitUrl": url, "commitOid": COMMIT}, True)

        def _commit(self, key: str, value: dict[str, str]) -> None:
            if key == "header":
                hub.commits.append(value["summary"])
            elif key == "file":
                hub.files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                hub.files[value["path"]] = hub.stored[value["oid"]]
            else:
                assert key == "deletedFile"
                del hub.files[value["path"]]

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def _json(self, value: object, with_body: bool) -> None:
            headers = {"Content-Type": "application/json"}
            self._send(200, json.dumps(value).encode(), headers, with_body)

        def _send(self, code: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def _entry(name: str, content: bytes, stored: dict[str, bytes]) -> dict[str, object]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in stored:
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _oid(content: bytes) -> str:
    """The name that git gives it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
