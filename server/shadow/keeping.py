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
SECRET = re.compile(r"(^|_)(api_?key|key|token|secret|password|authorization)s?$", re.IGNORECASE)
"""Names of fields whose values are never kept."""
_ADDRESS = re.compile(r"https?://[^\s]+")
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?[^,]*;base64,", re.IGNORECASE)

Fetch = Callable[[str], Awaitable[httpx.Response | None]]


class Keeper:
    """Args: fetch: gets a file by its address; None if it is not to be had."""

    def __init__(self, recording: Recording, fetch: Fetch) -> None:
        self._recording = recording
        self._fetch = fetch

    async def kept(self, value: Any) -> Any:
        """The same JSON, fit to be kept."""
        if isinstance(value, dict):
            return {name: "***" if SECRET.search(name) else await self.kept(each) for name, each in value.items()}
        if isinstance(value, list):
            return [await self.kept(each) for each in value]
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


def fetching(http: httpx.AsyncClient, own_host: str, headers: dict[str, str]) -> Fetch:
    """Args: headers: sent to `own_host` alone, whose files may be private."""

    async def fetch(address: str) -> httpx.Response | None:
        try:
            shown = headers if httpx.URL(address).host == own_host else {}
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
