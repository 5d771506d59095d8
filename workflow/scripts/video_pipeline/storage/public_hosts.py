"""Connections to hosts on the public internet, and to no others.

The check takes the address of the connection itself, before a byte is sent over it, so it does not
matter what the name resolved to before. It uses two public hooks: ``connect`` of
:class:`http.client.HTTPConnection` and ``wrap_socket`` of :class:`ssl.SSLContext`.
:func:`check_hooks` makes sure that urllib3 calls them.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from functools import cache
from importlib.metadata import version
from typing import Any

import certifi
import urllib3

from video_pipeline.errors import UserError
from video_pipeline.storage.errors import VideoReadError

TRIED = ("2.0.2", "2.8.0")
"""The lowest and the newest version of urllib3 that were tried (envs/lowest.txt, envs/cpu.txt)."""

_IPV6_UNICAST = ipaddress.ip_network("2000::/3")
"""The range of all global unicast addresses that IANA assigns (RFC 4291, section 2.4)."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet: it is not private, loopback, link-local
    or reserved, and neither is the IPv4 address that an IPv6 address may stand for."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None:
            return ip.is_global and ip in _IPV6_UNICAST
        ip = inner
    return ip.is_global and not ip.is_multicast


def open_pools() -> urllib3.PoolManager:
    """A manager whose connections raise :class:`VideoReadError` for a host that is not public."""
    pools = urllib3.PoolManager(ssl_context=_public_tls())
    pools.pool_classes_by_scheme = {"http": _PublicHttpPool, "https": urllib3.HTTPSConnectionPool}
    return pools


def trusting(context: ssl.SSLContext) -> ssl.SSLContext:
    """``context`` with the certificates of the system, which slim images lack, and certifi's."""
    context.load_default_certs()
    context.load_verify_locations(certifi.where())
    return context


@cache
def check_hooks() -> None:
    """Make sure, once in a process, that connections to this machine are refused.

    Raises:
        UserError: This version of urllib3 connects without calling the hooks.
        OSError: This machine has no address of its own, 127.0.0.1.
    """
    for scheme in ("http", "https"):
        with socket.create_server(("127.0.0.1", 0)) as server, open_pools() as pools:
            url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/"
            try:
                pools.request("GET", url, timeout=1.0, retries=False)
            except VideoReadError:
                continue
            except urllib3.exceptions.HTTPError:  # It sent a request, and got no answer.
                pass
        raise UserError(
            f"urllib3 {version('urllib3')} is not supported: it connects to {scheme}:// hosts "
            f"without the check that they are public. Tried: {TRIED[0]} to {TRIED[1]}. Install "
            f'one of them with: pip install "urllib3=={TRIED[1]}"'
        )


def _refuse_private(connected: socket.socket) -> None:
    if not is_public(connected.getpeername()[0]):
        connected.close()
        raise VideoReadError(
            "download: the host is not on the public internet "
            "(data.allow_private_addresses allows that)"
        )


class _PublicHttp(urllib3.connection.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _refuse_private(self.sock)


class _PublicHttpPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicHttp


class _PublicTls(ssl.SSLContext):
    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Refuse a host before the first bytes of TLS, which hold its name."""
        _refuse_private(sock)
        return super().wrap_socket(sock, *args, **kwargs)


@cache
def _public_tls() -> ssl.SSLContext:
    return trusting(_PublicTls(ssl.PROTOCOL_TLS_CLIENT))
