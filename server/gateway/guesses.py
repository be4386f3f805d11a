"""Slows down who tries keys: after some wrong ones a peer is refused for a while, whatever it brings.

Keys that have admitted it before go on admitting it, so that nobody is locked out by a neighbour behind one address.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.types import Scope

from server.http.errors import PlainError
from server.http.peers import is_loopback_peer

WRONG_KEYS = 30
"""So many wrong keys a peer may try within WINDOW_S."""

WINDOW_S = 60.0

PEERS = 10_000
"""Remembered at once, and so are pairs of a peer and a key that has admitted it."""


class Guesses:
    """Counts wrong keys by peer. Args: clock: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._right: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note_wrong(self, peer: str) -> None:
        """A wrong key. Raises: PlainError 429 if there were too many."""
        self._refuse_if_too_many(peer)
        since, number = self._wrong.pop(peer, (self._clock(), 0))
        self._wrong[peer] = since, number + 1
        _trim(self._wrong)

    def note_right(self, peer: str, key: str) -> None:
        """A right key. Raises: PlainError 429 if it might have been guessed."""
        if (peer, key) in self._right:
            return
        self._refuse_if_too_many(peer)
        self._right[peer, key] = None
        _trim(self._right)

    def _refuse_if_too_many(self, peer: str) -> None:
        since, number = self._wrong.get(peer, (0.0, 0))
        left_s = since + WINDOW_S - self._clock()
        if left_s <= 0:
            self._wrong.pop(peer, None)
        elif number >= WRONG_KEYS:
            raise PlainError(429, "Too many wrong keys from this address", {"retry-after": str(math.ceil(left_s))})


def peer_of(scope: Scope, headers: Headers) -> str:
    """The network that a caller comes from: what a proxy on this machine says, or else the connection's other end."""
    forwarded = headers.get("x-forwarded-for") if is_loopback_peer(scope) else None
    if forwarded:
        return _network(forwarded.rpartition(",")[2].strip())
    client = scope.get("client")
    return _network(client[0]) if client else ""


@lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """One IPv4 address, or the 64 bits of an IPv6 one that a single customer usually has."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else str(parsed)


def _trim(table: OrderedDict[str, tuple[float, int]] | OrderedDict[tuple[str, str], None]) -> None:
    while len(table) > PEERS:
        table.popitem(last=False)
