"""What of a request's JSON may be kept: pictures as files of the recording, and nothing that opens doors."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from server.shadow.recording import Recording

LARGEST = 64 << 20
SECRET = re.compile(r"(^|_)(api_?key|key|token|secret|password|authorization|credential)s?$", re.IGNORECASE)
"""Names of fields whose values are never kept, once hyphens and capitals within are underscores."""
_JOINT = re.compile(r"-|(?<=[a-z0-9])(?=[A-Z])")
DEEPEST = 100
_ADDRESS = re.compile(r"https?://[^\s]+")
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]*;base64,", re.IGNORECASE)

Fetch = Callable[[str], Awaitable[httpx.Response | None]]


class Keeper:
    """Args: fetch: gets a file by its address; None if it is not to be had."""

    def __init__(self, recording: Recording, fetch: Fetch) -> None:
        self._recording = recording
        self._fetch = fetch

    async def kept(self, value: Any, depth: int = 0) -> Any:
        """The same JSON, fit to be kept; what lies deeper than DEEPEST is left out."""
        if depth > DEEPEST:
            return None
        if isinstance(value, dict):
            return {
                name: "***" if is_secret(name) else await self.kept(each, depth + 1) for name, each in value.items()
            }
        if isinstance(value, list):
            return [await self.kept(each, depth + 1) for each in value]
        if not isinstance(value, str):
            return value
        if match := _DATA.match(value):
            return self._kept_data(value[match.end() :], match[1] or "text/plain")
        return await self._kept_address(value) if _ADDRESS.fullmatch(value) else value

    def _kept_data(self, encoded: str, content_type: str) -> str:
        try:
            return self._recording.keep_file(base64.b64decode(encoded, validate=True), content_type)
        except ValueError:
            return "data:"  # what could not be read there cannot be read here

    async def _kept_address(self, address: str) -> str:
        """A picture becomes a file; any other address stays, without what its query or user name may open."""
        answer = await self._fetch(address)
        content_type = "" if answer is None else answer.headers.get("content-type", "")
        if answer is not None and content_type.startswith("image/"):
            return self._recording.keep_file(answer.content, content_type)
        parts = urlsplit(address)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def is_secret(name: str) -> bool:
    """Whether a field's value opens something, by its name."""
    return SECRET.search(_JOINT.sub("_", name)) is not None


async def nothing(address: str) -> httpx.Response | None:
    """Fetch no file: what a server refused names addresses that nobody vetted."""
    return None


def fetching(http: httpx.AsyncClient, own: httpx.URL, headers: dict[str, str]) -> Fetch:
    """Args: headers: sent to the server of `own` alone, whose files may be private."""

    async def fetch(address: str) -> httpx.Response | None:
        try:
            there = httpx.URL(address)
            is_own = (there.scheme, there.host, there.port) == (own.scheme, own.host, own.port)
            shown = headers if is_own else {}
            async with http.stream("GET", address, headers=shown, follow_redirects=not shown, timeout=60) as answer:
                if answer.status_code != 200 or not answer.headers.get("content-type", "").startswith("image/"):
                    return None
                content = bytearray()
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        return None
        except (httpx.HTTPError, httpx.InvalidURL):
            return None
        return httpx.Response(200, headers={"content-type": answer.headers["content-type"]}, content=bytes(content))

    return fetch
