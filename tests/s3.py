"""A stand-in for S3: moto's server on loopback."""

from __future__ import annotations

import contextlib
import http.client
import socket
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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as stream:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            wait_until(lambda: _listens(port), f"moto listens:\n{log.read_text()}")
            _make_bucket(port, bucket)
            stores._open_store.cache_clear()
            yield S3Store(bucket, client_options={"allow_http": True})
        finally:
            server.kill()
            server.wait()
            stores._open_store.cache_clear()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def _make_bucket(port: int, bucket: str) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        connection.request("PUT", f"/{bucket}", headers={"Host": "s3.amazonaws.com"})
        assert connection.getresponse().status == 200
