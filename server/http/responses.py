"""JSON answers: orjson, a content type on every one, and errors as they are raised."""

from __future__ import annotations

import json
from collections.abc import Mapping

import orjson
from starlette.responses import Response

from server.http.errors import PlainError, WireError

_JSON_TYPE = (b"content-type", b"application/json")


class _JsonResponse(Response):
    """JSON that is bytes already. Every poll is answered by one; without headers of its own it costs 1 us less."""

    media_type = "application/json"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        if headers is None:
            self.raw_headers = [(b"content-length", b"%d" % len(self.body)), _JSON_TYPE]
        else:
            super().init_headers(headers)


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Any JSON value; fal's clients parse by the content type, so a bare string is labelled, too."""
    return _JsonResponse(orjson.dumps(body), status, headers)


def error_response(exc: WireError) -> Response:
    """The answer that an exception means."""
    return json_response(exc.body, exc.status, exc.headers)


def wrong_method(*allowed: str) -> PlainError:
    """405 with the methods that would do."""
    return PlainError(405, "Method Not Allowed", {"allow": ", ".join(allowed)})


def ascii_json(body: object) -> bytes:
    """JSON in ASCII, non-ASCII characters escaped: JS clients decode event streams chunk by chunk."""
    data = orjson.dumps(body)
    # The standard writer escapes and is slow; most bodies have nothing to escape.
    return data if data.isascii() else json.dumps(body).encode("ascii")
