"""Requests to addresses that somebody has typed in: never to this machine or its network, unless it is allowed.

The address is chosen and checked when the connection is made, so neither a name that resolves to a private address nor
one that changes between two look-ups gets through; redirections are not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings

from apps.core.errors import DomainError

TIMEOUT_S: Final = 10.0
_MAX_ANSWER: Final = 65_536

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def send(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Send one request and return the status of the answer.

    Raises ``DomainError`` for an address that may not be called, and ``OSError`` when it cannot be reached.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise DomainError("The address has to begin with http:// or https:// and hold no password.")
    connection = (_Https if parts.scheme == "https" else _Http)(parts.hostname, parts.port, timeout=TIMEOUT_S)
    target = parts.path or "/"
    try:
        connection.request(method, f"{target}?{parts.query}" if parts.query else target, body, dict(headers))
        answer = connection.getresponse()
        answer.read(_MAX_ANSWER)
        return answer.status
    except http.client.HTTPException as error:
        raise OSError(f"the answer is no HTTP ({type(error).__name__})") from error
    finally:
        connection.close()


def may_be_called(address: str, allowed: Iterable[str]) -> bool:
    """Whether an IP address is public, or in one of the networks that are allowed."""
    ip: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1] or ip
    if any(ip in ipaddress.ip_network(network, strict=False) for network in allowed):
        return True
    return ip.is_global and not ip.is_multicast


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    """A connection to the first address of ``host`` that may be called."""
    refused, failure = False, OSError("no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not may_be_called(str(address[0]), settings.OUTGOING_NETWORKS):
            refused = True
            continue
        found = socket.socket(family, kind, protocol)
        found.settimeout(timeout)
        try:
            found.connect(address)
        except OSError as error:
            found.close()
            failure = error
        else:
            return found
    if refused:
        raise DomainError(f"{host} is an address of this machine or its network. OUTGOING_NETWORKS can allow it.")
    raise failure


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        """Connect to an address that was checked."""
        self.sock = _connect(self.host, self.port, float(self.timeout or TIMEOUT_S))


class _Https(http.client.HTTPSConnection):
    def connect(self) -> None:
        """Connect to an address that was checked; the certificate is for the name."""
        plain = _connect(self.host, self.port, float(self.timeout or TIMEOUT_S))
        context: Any = ssl.create_default_context()
        self.sock = context.wrap_socket(plain, server_hostname=self.host)
