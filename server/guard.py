"""Whether a request may be made: a key in the header, or a realtime token in the query where fal's clients use one."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.datastructures import Headers

from server.areas import Area, Arrival
from server.auth import KeyRing, admits
from server.errors import PlainError
from server.tokens import Tokens

BAD_TOKEN = "The token is not valid for this app, or has expired"


class Guard:
    """Keys and tokens of one server."""

    def __init__(self, keys: KeyRing, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens

    def check(self, arrival: Arrival, headers: Headers) -> None:
        """Pass, or raise PlainError 401. `fal_jwt_token` counts for run and queue, realtime included."""
        if self._keys.is_open:
            return
        token = _query_token(arrival.query) if arrival.area in (Area.RUN, Area.QUEUE) else None
        if token is None:
            self._keys.check(headers)
        elif not admits(self._tokens.read("realtime", token), _endpoint(arrival)):
            raise PlainError(401, BAD_TOKEN)


def _query_token(query: bytes) -> str | None:
    if b"fal_jwt_token" not in query:
        return None
    return parse_qs(query.decode("latin-1")).get("fal_jwt_token", [None])[-1]


def _endpoint(arrival: Arrival) -> str:
    return arrival.follow_up.app if arrival.follow_up else arrival.path
