"""Who may call: API keys compared in constant time, and the few paths that are open to all."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from server.errors import PlainError
from server.paths import app_root

NO_CREDENTIALS = 'Authentication is required: send the header "Authorization: Key YOUR_KEY"'
MALFORMED = 'Invalid Key Authorization header format: expected "Authorization: Key YOUR_KEY"'
UNKNOWN_KEY = "No user found for Key ID and Secret"


class KeyRing:
    """The keys that open this server; without any it is open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def is_open(self) -> bool:
        return not self._digests

    def check(self, headers: Headers) -> None:
        """Pass, or raise PlainError 401 with fal's words. The scheme `Key` is compared without regard to case."""
        if self.is_open:
            return
        value = headers.get("authorization")
        if not value:
            raise PlainError(401, NO_CREDENTIALS)
        scheme, _, key = value.strip().partition(" ")
        if scheme.lower() not in ("key", "bearer") or not key.strip():
            raise PlainError(401, MALFORMED)
        if not self._knows(key.strip()):
            raise PlainError(401, UNKNOWN_KEY)

    def _knows(self, key: str) -> bool:
        """Compare with every key, digests of equal length, so that time tells neither which nor how much."""
        given = _digest(key)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def admits(claims: dict[str, Any] | None, endpoint: str) -> bool:
    """Whether a realtime token speaks for an endpoint: it names the alias alone, or an id at or above it."""
    if claims is None:
        return False
    path = endpoint.strip("/")
    alias = app_root(path).rpartition("/")[2]
    return any(app == alias or f"{path}/".startswith(f"{app.strip('/')}/") for app in claims.get("apps", []))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


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
    return is_loopback_peer(scope) and "x-forwarded-for" not in headers and "forwarded" not in headers
