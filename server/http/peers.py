"""Who is at the other end of a connection: this machine, or another."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import Scope

_OF_A_PROXY = re.compile(
    r"forwarded|via|x-(original-)?forwarded.*|x-real-ip|x-client-ip|true-client-ip|(cf|fastly)-connecting-ip|"
    r"fastly-client-ip|x-envoy-external-address|x-original-(url|host)"
)
"""Names of what reverse proxies add to a request; not all of them say for whom it is."""


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
    return is_loopback_peer(scope) and not any(map(_OF_A_PROXY.fullmatch, headers))
