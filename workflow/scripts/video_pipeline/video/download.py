"""Downloads of videos and images by http(s), within limits, to a file without a name.

The environment's proxies (``http_proxy``, ``https_proxy``, ``all_proxy``, ``no_proxy``) are used.
A proxy connects to the hosts itself, so its rules, not ours, say which addresses it may ask.
"""

from __future__ import annotations

import base64
import ssl
import tempfile
from contextlib import closing
from functools import cache
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urljoin
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3 import exceptions
from urllib3.util import Timeout, Url, make_headers, parse_url

from video_pipeline.video import public_hosts
from video_pipeline.video.errors import VideoReadError

CONNECT_SECONDS = 10.0
"""How long a host may take to accept a connection."""

READ_SECONDS = 30.0
"""How long a host may send nothing. ``data.sample_timeout_s`` bounds the whole download."""

MAX_REDIRECTS = 10

_PIECE_BYTES = 1 << 20


def download(url: str, max_bytes: int, allow_private_addresses: bool) -> BinaryIO:
    """Download ``url`` (``http://`` or ``https://``) to a temporary file, which is removed when it
    is closed. Each redirect is held to the same rules.

    Raises:
        VideoReadError: The message never holds the address, which may hold a password.
    """
    file = tempfile.TemporaryFile(buffering=0)
    try:
        hop = _parse(url)
        for _ in range(1 + MAX_REDIRECTS):
            with (
                _pools(hop, allow_private_addresses) as pools,
                closing(_request(pools, hop)) as response,
            ):
                location = response.get_redirect_location()
                if not location:
                    _save(response, file, max_bytes)
                    return file
            hop = _parse(location, base=hop.url)
        raise VideoReadError(f"download: redirected more than {MAX_REDIRECTS} times")
    except exceptions.HTTPError as error:
        file.close()
        raise VideoReadError(f"download: {_explain(error)}") from None
    except BaseException:
        file.close()
        raise


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


def _request(pools: urllib3.PoolManager, url: Url) -> urllib3.BaseHTTPResponse:
    headers = make_headers(accept_encoding="identity", user_agent="video-pipeline")
    if url.auth:
        credentials = base64.b64encode(unquote_to_bytes(url.auth)).decode()
        headers["authorization"] = f"Basic {credentials}"
    return pools.request(
        "GET",
        url._replace(auth=None, fragment=None).url,
        headers=headers,
        timeout=Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        preload_content=False,
        redirect=False,
        retries=False,
    )


def _save(response: urllib3.BaseHTTPResponse, file: BinaryIO, max_bytes: int) -> None:
    if response.status != 200:
        raise VideoReadError(f"download: the server answered with status {response.status}")
    too_large = VideoReadError(
        f"download: larger than {max_bytes / 1e9:g} GB, the limit data.max_download_gb"
    )
    if (response.length_remaining or 0) > max_bytes:
        raise too_large
    size = 0
    for piece in response.stream(_PIECE_BYTES, decode_content=False):
        size += len(piece)
        if size > max_bytes:
            raise too_large
        _write(file, memoryview(piece))


def _write(file: BinaryIO, piece: memoryview) -> None:
    try:
        while piece:
            piece = piece[file.write(piece) :]
    except OSError as error:
        raise VideoReadError(
            f"download: cannot be written to {tempfile.gettempdir()} (the environment variable "
            f"TMPDIR names another folder): {error.strerror}"
        ) from error


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
