"""Whether a request may be made: a key in the header, or a realtime token in the query where fal's clients use one."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers

from server.api.paths import app_root
from server.gateway.areas import Area, Target
from server.gateway.keys import KeyRing
from server.gateway.tokens import Tokens
from server.http.errors import PlainError

BAD_TOKEN = "The token is not valid for this app, or has expired"


class Guard:
    """Keys and tokens of one server."""

    def __init__(self, keys: KeyRing, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens

    def check(self, target: Target, headers: Headers) -> None:
        """Pass, or raise PlainError 401. `fal_jwt_token` counts for run and queue, realtime included."""
        if self._keys.is_open:
            return
        token = _query_token(target.query) if target.area in (Area.RUN, Area.QUEUE) else None
        if token is None:
            self._keys.check(headers)
        elif not admits(self._tokens.read("realtime", token), _endpoint(target)):
            raise PlainError(401, BAD_TOKEN)


def admits(claims: dict[str, Any] | None, endpoint: str) -> bool:
    """Whether a realtime token speaks for an endpoint: it names the alias alone, or an id at or above it."""
    if claims is None:
        return False
    path = endpoint.strip("/")
    alias = app_root(path).rpartition("/")[2]
    return any(app == alias or f"{path}/".startswith(f"{app.strip('/')}/") for app in claims.get("apps", []))


def _query_token(query: bytes) -> str | None:
    if b"fal_jwt_token" not in query:
        return None
    return parse_qs(query.decode("latin-1")).get("fal_jwt_token", [None])[-1]


def _endpoint(target: Target) -> str:
    return target.follow_up.app if target.follow_up else target.path
