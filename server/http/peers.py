"""Who is at the other end of a connection: this machine, or another."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import Scope

_OF_A_PROXY = (
    "forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip",
    "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-server",
)  # fmt: skip
"""What reverse proxies add to a request; not all of them say for whom it is."""


def is_loopback_peer(scope: Scope) -> bool:
    """Whether the connection itself comes from this machine (a reverse proxy's does, too)."""
    client = scope.get("client")
    if not client:
        return True  # a Unix socket or an in-process call
    return _is_loopback(client[0])


@lru_cache(maxsize=1024)
def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_local_caller(scope: Scope, headers: Headers) -> bool:
    """Whether the caller itself, not merely a reverse proxy in front of us, is on this machine."""
    return is_loopback_peer(scope) and not any(name in headers for name in _OF_A_PROXY)
