"""Reading a request's JSON body: strict JSON, bounded in bytes, depth and the number of its values."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson
from starlette.requests import Request

from server.api.errors import InputError, problem
from server.http.errors import PlainError

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Enough for the data URIs of a few pictures."""

MAX_DEPTH = 64
"""Nesting that no endpoint needs, but that the JSON writers of every later stage can still follow."""

MAX_VALUES = 10_000
"""In all lists and objects together. Each may be at fault, and to tell so takes ten microseconds of the loop."""

MAX_MARKS = 200_000
"""Commas and opening brackets: what a parser would make a value of each. Long texts may hold some, too."""

TOO_MANY = f"more than {MAX_VALUES} values"

_CODINGS = frozenset({"gzip", "deflate", "br", "zstd"})

_CAUSES = {
    "number is infinity when parsed as double": "a number is too large",
    "depth limit exceeded": f"nested deeper than {MAX_DEPTH} levels",
    "str is not valid UTF-8: surrogates not allowed": "the body is not UTF-8 text",
}
"""The parser's words that no caller could act on -> ours."""


async def read_bytes(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body. Raises PlainError 413 beyond `limit` bytes, 415 if it is compressed, ClientDisconnect if the
    caller goes."""
    check_declared(request, limit)
    if (coding := request.headers.get("content-encoding", "identity").lower()) not in ("", "identity"):
        named = coding if coding in _CODINGS else "that was given"
        message = f"Content-Encoding {named} is not read here: send the body as it is"
        raise PlainError(415, message, {"accept-encoding": "identity"})
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def check_declared(request: Request, limit: int) -> None:
    """Refuse a body by its announced size, before any of it is read. Raises PlainError 413."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object, whatever its content type says.

    Raises: InputError for anything but one JSON object, PlainError 413.
    """
    return parse_object(await read_bytes(request))


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object from bytes; empty bytes give an empty one. Raises InputError."""
    if not data.strip():
        return {}
    text = _as_utf8(data)
    if is_crowded(text):
        raise _not_json(TOO_MANY)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        error = _CAUSES.get(exc.msg, exc.msg)
        raise InputError([problem([exc.pos], "JSON decode error", "json_invalid", {"error": error})]) from exc
    return checked_object(value)


def is_crowded(text: bytes) -> bool:
    """Whether a parser would make too much of it: eight million empty objects are 32 MiB to read and a GiB to keep.

    From mark to mark, as pictures have none: to count them all takes longer than to parse."""
    left = MAX_MARKS
    for mark in b",[{" if len(text) > MAX_MARKS else b"":
        place = text.find(mark)
        while place >= 0 and left >= 0:
            left -= 1
            place = text.find(mark, place + 1)
    return left < 0


def _as_utf8(data: bytes) -> bytes:
    """The same text without a byte order mark, and from UTF-16 or UTF-32: Windows' tools send these, and fal, whose
    parser is Python's own, reads them. What cannot be read is left for the parser to refuse."""
    encoding = json.detect_encoding(data)
    if encoding == "utf-8":
        return data
    try:
        return data.decode(encoding).encode()
    except UnicodeError:
        return data


def checked_object(value: object) -> dict[str, Any]:
    """The value itself if it is an object, neither nested too deeply nor of too many values. Raises InputError."""
    if not isinstance(value, dict):
        msg = "Input should be a valid dictionary or object to extract fields from"
        raise InputError([problem([], msg, "model_attributes_type", value=value)])
    if (excess := _excess(value)) is not None:
        raise _not_json(excess)
    return value


def _excess(value: object) -> str | None:
    """What there is too much of; level by level, so that depth costs no stack."""
    level: list[object] = [value]
    number = 0
    for _ in range(MAX_DEPTH):
        items = [item for node in level for item in _items(node)]
        number += len(items)
        if number > MAX_VALUES:
            return TOO_MANY
        level = [item for item in items if isinstance(item, dict | list)]
        if not level:
            return None
    return f"nested deeper than {MAX_DEPTH} levels"


def _not_json(error: str) -> InputError:
    return InputError([problem([], "JSON decode error", "json_invalid", {"error": error})])


def _items(node: object) -> Iterable[object]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _too_large(limit: int) -> PlainError:
    return PlainError(413, f"The request body is larger than {limit} bytes")
