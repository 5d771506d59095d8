"""A server of files that is like a far object store: slow to answer, and slow on each connection.

It serves a folder over HTTP with ranges, and the part of S3 that reads an object. The last part of
an address is the name of the file. :mod:`benchmarks.remote` runs it in its own process.
"""

from __future__ import annotations

import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LATENCY_SECONDS = 0.05
"""The wait before a connection opens, and again before each answer."""

BYTES_A_SECOND = 20e6
"""The rate of one connection."""

_PIECE_BYTES = 256 << 10


class Handler(BaseHTTPRequestHandler):
    """Serves the files in ``folder``."""

    protocol_version = "HTTP/1.1"
    folder = Path()

    def setup(self) -> None:
        time.sleep(LATENCY_SECONDS)
        super().setup()

    def do_HEAD(self) -> None:
        self._answer(b"", 200, *self._file())

    def do_GET(self) -> None:
        size, content = self._file()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if part is None:
            self._answer(content, 200, size, content)
            return
        begin, end = int(part[1]), min(int(part[2] or size - 1) + 1, size)
        where = f"bytes {begin}-{end - 1}/{size}"
        self._answer(content[begin:end], 206, end - begin, content, content_range=where)

    def _file(self) -> tuple[int, bytes]:
        content = (self.folder / Path(self.path).name).read_bytes()
        return len(content), content

    def _answer(
        self, body: bytes, status: int, size: int, content: bytes, content_range: str = ""
    ) -> None:
        time.sleep(LATENCY_SECONDS)
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("ETag", f'"{len(content)}"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        begin = time.monotonic()
        for start in range(0, len(body), _PIECE_BYTES):
            time.sleep(max(0.0, begin + start / BYTES_A_SECOND - time.monotonic()))
            self.wfile.write(body[start : start + _PIECE_BYTES])

    def log_message(self, *_: object) -> None:
        """Write nothing: a line for each request would not help."""


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
