"""A server of files as a far object store is: slow to answer, and slow on each connection.

It serves a folder by http with ranges, and as much of S3 as reading an object takes. The last part
of an address is the name of the file. Run by :mod:`benchmarks.remote` as a process of its own.
"""

from __future__ import annotations

import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LATENCY_SECONDS = 0.05
"""Of opening a connection, and again of each answer."""

BYTES_A_SECOND = 20e6
"""Of one connection."""

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
        """A line for each request would say nothing."""


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
