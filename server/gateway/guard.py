"""Who may ask what: a key in the header, or a realtime token in the query where fal's clients use one."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from server.api.paths import app_root
from server.gateway.areas import Area, Target
from server.gateway.guesses import Guesses, peer_of
from server.gateway.key_file import KeyScope
from server.gateway.keys import ANYBODY, Caller, KeyRing, UnknownKeyError
from server.gateway.tokens import Tokens
from server.http.errors import PlainError
from server.http.names import FAL_HOSTS
from server.http.peers import is_local_caller
from server.settings import is_loopback

BAD_TOKEN = "The token is not valid for this app, or has expired"

NO_LISTS = "Without keys, requests are listed to programs on this machine alone: `fluxserve keys new` makes a key"

_BY_AREA = {Area.RUN: KeyScope.RUN, Area.WS: KeyScope.RUN, Area.QUEUE: KeyScope.QUEUE}
_BY_PATH = {
    (Area.SYSTEM, "/metrics"): KeyScope.ADMIN,
    (Area.SYSTEM, "/health"): KeyScope.ADMIN,
    (Area.SYSTEM, "/v1/workers"): KeyScope.ADMIN,
    (Area.SYSTEM, "/v1/workers/sleep"): KeyScope.ADMIN,
    (Area.SYSTEM, "/v1/workers/wake"): KeyScope.ADMIN,
    (Area.SYSTEM, "/v1/images/generations"): KeyScope.RUN,
    (Area.REST, "/tokens"): KeyScope.RUN,
    (Area.REST, "/tokens/realtime"): KeyScope.RUN,
}


_OPERATOR = ("/v1/jobs", "/v1/pauses", "/v1/keys", "/v1/nodes", "/v1/drains")
"""What is about everybody."""

_REQUESTS = ("/v1/models/requests",)
"""A key's own requests."""

_LISTS = (*_REQUESTS, "/v1/models/usage", "/v1/models/analytics", *_OPERATOR)
"""Where requests are found or counted without knowing their ids."""


class Guard:
    """Keys and tokens of one server."""

    def __init__(self, keys: KeyRing, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens
        self._guesses = Guesses()

    def check(self, target: Target, scope: Scope, headers: Headers) -> Caller:
        """Who asks, if they may; `fal_jwt_token` counts for run and queue, realtime included.

        Raises: PlainError 401, 403 for a key that is not for this, 429 for a peer that tries keys."""
        if self._keys.is_open:
            if _is_below(target, _LISTS) and not _is_at_this_machine(target, scope, headers):
                raise PlainError(403, NO_LISTS)
            return ANYBODY
        token = _query_token(target.query) if target.area in (Area.RUN, Area.QUEUE) else None
        caller = self.by_key(scope, headers) if token is None else self._by_token(token, _endpoint(target))
        if (wanted := _scope_for(target)) is not None:
            caller.require(wanted)
        return caller

    def by_key(self, scope: Scope, headers: Headers) -> Caller:
        """Whose key the header brings. Raises: PlainError 401, 429."""
        try:
            caller = self._keys.check(headers)
        except UnknownKeyError:
            self._guesses.note_wrong(peer_of(scope, headers))
            raise
        if caller is not ANYBODY:
            self._guesses.note_right(peer_of(scope, headers), caller.key)
        return caller

    def still_admits(self, caller: Caller) -> bool:
        """Whether a connection that was opened with this key may stay open."""
        return self._keys.caller_of(caller.key) == caller

    def of_token(self, claims: dict[str, Any] | None) -> Caller | None:
        """Who a token speaks for, if it is valid and the key that it was issued to still admits."""
        return None if claims is None else self._keys.caller_of(claims.get("caller"))

    def _by_token(self, token: str, endpoint: str) -> Caller:
        claims = self._tokens.read("realtime", token)
        caller = self.of_token(claims)
        if caller is None or not admits(claims, endpoint):
            raise PlainError(401, BAD_TOKEN)
        return caller


def admits(claims: dict[str, Any] | None, endpoint: str) -> bool:
    """Whether a realtime token speaks for an endpoint: it names the alias alone, or an id at or above it."""
    if claims is None:
        return False
    path = endpoint.strip("/")
    alias = app_root(path).rpartition("/")[2]
    return any(app == alias or f"{path}/".startswith(f"{app.strip('/')}/") for app in claims.get("apps", []))


def _scope_for(target: Target) -> KeyScope | None:
    """What a key must be for; None where any key will do."""
    if (wanted := _BY_AREA.get(target.area)) is not None:
        return wanted
    if target.area is Area.REST and target.path.startswith("/storage/"):
        return KeyScope.FILES
    if _is_below(target, _OPERATOR):
        return KeyScope.ADMIN
    if _is_below(target, _REQUESTS):
        return KeyScope.QUEUE
    return _BY_PATH.get((target.area, target.path))


def _is_below(target: Target, paths: tuple[str, ...]) -> bool:
    return target.area is Area.SYSTEM and f"{target.path}/".startswith(tuple(f"{path}/" for path in paths))


def _is_at_this_machine(target: Target, scope: Scope, headers: Headers) -> bool:
    """Whether a program here asks, or our own page, and no other page in a browser, which would bring another origin,
    or its own host name."""
    host = urlsplit(target.origin).hostname or ""
    is_own = headers.get("origin") in (None, target.origin)
    is_own = is_own and headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    return is_local_caller(scope, headers) and is_own and (is_loopback(host) or host in FAL_HOSTS)


def _query_token(query: bytes) -> str | None:
    if b"fal_jwt_token" not in query:
        return None
    return parse_qs(query.decode("latin-1")).get("fal_jwt_token", [None])[-1]


def _endpoint(target: Target) -> str:
    return target.follow_up.app if target.follow_up else target.path
