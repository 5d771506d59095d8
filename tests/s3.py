"""A stand-in for S3: moto's server on loopback."""

from __future__ import annotations

import contextlib
import http.client
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import wait_until
from obstore.store import S3Store
from video_pipeline.storage import stores


@contextmanager
def serving_s3(log: Path, bucket: str) -> Iterator[S3Store]:
    """A server with an empty ``bucket``, to which the environment leads until the block ends."""
    environment = {
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as stream:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            port = wait_until(lambda: _port_in(log), "moto listens")
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
            _make_bucket(port, bucket)
            stores._open_store.cache_clear()
            yield S3Store(bucket, client_options={"allow_http": True})
        finally:
            server.kill()
            server.wait()
            stores._open_store.cache_clear()


def _port_in(log: Path) -> int:
    """The port that the system gave the server, by what it says once it listens; 0: not yet."""
    found = re.search(r"Running on http://127\.0\.0\.1:(\d+)\n", log.read_text())
    return int(found[1]) if found else 0


def _make_bucket(port: int, bucket: str) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("PUT", f"/{bucket}", headers={"Host": "s3.amazonaws.com"})
        assert connection.getresponse().status == 200
