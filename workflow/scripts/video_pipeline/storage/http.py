"""Reads files over http(s), within limits.

The environment's proxies (``http_proxy``, ``https_proxy``, ``all_proxy``, ``no_proxy``) are used.
A proxy connects to the hosts itself, so its rules decide which addresses it may ask, not ours.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, lru_cache
from urllib.parse import quote, unquote_to_bytes, urljoin
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions
from urllib3.util import Timeout, Url, make_headers, parse_url

from video_pipeline.storage import public_hosts
from video_pipeline.storage.blobs import Blob, too_large
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.retries import LONGEST_SECONDS, Host, Patience, Unavailable, seconds_of

CONNECT_SECONDS = 10.0
"""How long a host may take to accept a connection."""

READ_SECONDS = 30.0
"""How long a host may send nothing. ``data.sample_timeout_s`` bounds the whole download."""

MAX_REDIRECTS = 10

BUSY = frozenset({429, 500, 502, 503, 504})
"""Statuses of a server that may answer a little later (RFC 9110, 15.6; RFC 6585, 4)."""

_PIECE_BYTES = 256 << 10


class HttpBlob(Blob):
    """A file at ``http://`` or ``https://``. The same rules hold for each redirect. A busy server
    is asked again, and after a connection that broke off only for the missing bytes."""

    def __init__(self, url: str, max_bytes: int, allow_private_addresses: bool) -> None:
        self._url = url
        self._max_bytes = max_bytes
        self._allow_private_addresses = allow_private_addresses
        self._size: int | None = None
        self._version: str | None = None

    @property
    def size(self) -> int:
        if self._size is None:
            self.read(0, 1)
        assert self._size is not None
        return self._size

    @property
    def version(self) -> str:
        if self._version is None:
            self.read(0, 1)
        return self._version or ""

    def read(self, start: int, stop: int) -> bytes:
        patience = Patience()
        while True:
            try:
                return self._read(start, stop)
            except Unavailable as error:
                patience.wait(error)

    def _read(self, start: int, stop: int) -> bytes:
        with self._response(f"bytes={start}-{stop - 1}") as response:
            if response.status == 200:
                raise VideoReadError(
                    "download: the server gives no part of a file (no range requests), which a "
                    "member of a tar or a row of Parquet needs"
                )
            self._check_part(response, start)
            data: bytes = response.read(stop - start + 1, decode_content=False)
        if len(data) != min(stop, self._size or 0) - start:
            raise VideoReadError("download: the server gives another part than was asked for")
        return data

    def _check_part(self, response: urllib3.BaseHTTPResponse, start: int) -> None:
        """Raise :class:`VideoReadError` if this is not the file from ``start`` on."""
        _check_status(response, 206)
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if not content_range or int(content_range[1]) != start:
            raise VideoReadError("download: the server gives another part than was asked for")
        self._check_same(response, int(content_range[2]))

    def _check_same(self, response: urllib3.BaseHTTPResponse, size: int | None) -> None:
        """Raise :class:`VideoReadError` if the file is another one than at the first answer."""
        version = response.headers.get("etag") or response.headers.get("last-modified", "")
        size_before = size if self._size is None else self._size
        if (self._version or version, size_before) != (version, size):
            raise VideoReadError("download: the file changed while it was read")
        self._size, self._version = size, version

    def pieces(self) -> Iterator[bytes]:
        patience, done = Patience(), 0
        while True:
            try:
                for piece in self._from(done):
                    yield piece
                    done += len(piece)
                    patience.reset()
                return
            except Unavailable as error:
                patience.wait(error)

    def _from(self, start: int) -> Iterator[bytes]:
        """The bytes from ``start`` on, in pieces, of one answer."""
        with self._response(f"bytes={start}-" if start else None) as response:
            if start and response.status == 206:
                self._check_part(response, start)
                start = 0
            else:
                _check_status(response, 200)
                self._check_same(response, response.length_remaining)
            if (self._size or 0) > self._max_bytes:
                raise too_large(self._max_bytes)
            for piece in response.stream(_PIECE_BYTES, decode_content=False):
                # A server without ranges starts again with the bytes that are here already.
                if missing := piece[start:]:
                    yield missing
                start = max(0, start - len(piece))

    @contextmanager
    def _response(self, part: str | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer of the host that the redirects lead to."""
        try:
            hop = _parse(self._url)
            for _ in range(1 + MAX_REDIRECTS):
                host = _host(hop.netloc)
                with (
                    host.connection(),
                    _pools(hop, self._allow_private_addresses) as pools,
                    closing(_request(pools, hop, part)) as response,
                ):
                    location = response.get_redirect_location()
                    if response.status in BUSY:
                        raise _busy(response, host)
                    if not location:
                        yield response
                        return
                # Some servers do not quote what is not ASCII.
                location = quote(location.encode("latin-1"), safe=bytes(range(128)))
                hop = _parse(location, base=hop.url)
            raise VideoReadError(f"download: redirected more than {MAX_REDIRECTS} times")
        except exceptions.ProtocolError as error:
            raise Unavailable(f"download: {_explain(error)}") from None
        except exceptions.HTTPError as error:
            raise VideoReadError(f"download: {_explain(error)}") from None


_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def _parse(url: str, base: str = "") -> Url:
    """Parse an address, which may be relative to ``base``."""
    try:
        parts = parse_url(urljoin(base, url))
    except ValueError:
        raise VideoReadError("download: not a valid address") from None
    if parts.scheme not in ("http", "https"):
        raise VideoReadError(
            f"download: redirected to {parts.scheme}://, only http:// and https:// are read"
        )
    if not parts.host:
        raise VideoReadError("download: not a valid address")
    return parts


def _request(pools: urllib3.PoolManager, url: Url, part: str | None) -> urllib3.BaseHTTPResponse:
    headers = make_headers(accept_encoding="identity", user_agent="video-pipeline")
    if url.auth:
        credentials = base64.b64encode(unquote_to_bytes(url.auth)).decode()
        headers["authorization"] = f"Basic {credentials}"
    if part:
        headers["range"] = part
    return pools.request(
        "GET",
        url._replace(auth=None, fragment=None).url,
        headers=headers,
        timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        preload_content=False,
        redirect=False,
        retries=False,
    )


@lru_cache(maxsize=1024)
def _host(name: str | None) -> Host:
    return Host()


def _busy(response: urllib3.BaseHTTPResponse, host: Host) -> Unavailable:
    """The error for a status of :data:`BUSY`. If the host asks for a pause, all threads keep it."""
    seconds = seconds_of(response.headers.get("retry-after"))
    if seconds <= LONGEST_SECONDS:
        host.spare(seconds)
    return Unavailable(f"download: the server answered with status {response.status}", seconds)


def _check_status(response: urllib3.BaseHTTPResponse, expected: int) -> None:
    if response.status != expected:
        raise VideoReadError(f"download: the server answered with status {response.status}")


def _explain(error: Exception) -> str:
    """Explain an error without the address, which urllib3's own messages hold."""
    match error:
        case exceptions.ProxyError():
            return f"the proxy: {_explain(error.original_error)}"
        case exceptions.NameResolutionError():
            return "the name of the host cannot be resolved"
        case exceptions.NewConnectionError(__cause__=OSError() as cause):
            return f"no connection ({cause.strerror or type(cause).__name__})"
        case exceptions.ConnectTimeoutError():
            return f"no connection within {CONNECT_SECONDS:g} s"
        case exceptions.ReadTimeoutError():
            return f"nothing came for {READ_SECONDS:g} s"
        case exceptions.SSLError():
            return f"no secure connection ({error})"
        case exceptions.ProtocolError():
            return "the connection broke off"
        case exceptions.LocationParseError():
            return "not a valid address"
    return type(error).__name__


def _pools(url: Url, allow_private_addresses: bool) -> urllib3.PoolManager:
    """The manager of the connection to ``url``."""
    proxy = _proxy(url)
    if proxy is not None:
        auth = parse_url(proxy).auth
        headers = make_headers(proxy_basic_auth=auth) if auth else None
        return urllib3.ProxyManager(proxy, proxy_headers=headers, ssl_context=_tls())
    if allow_private_addresses:
        return urllib3.PoolManager(ssl_context=_tls())
    public_hosts.check_hooks()
    return public_hosts.open_pools()


def _proxy(url: Url) -> str | None:
    """The environment's proxy for ``url``."""
    if proxy_bypass(url.netloc or ""):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme or "") or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@cache
def _tls() -> ssl.SSLContext:
    return public_hosts.trusting(ssl.create_default_context())
