"""API keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from server.http.errors import PlainError

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


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
