"""HTTP answers in one write each: uvicorn hands over head and body apart, and uvloop sends each at once.

Two system calls and two packets an answer are a tenth of what a status poll costs here, and as much at its client.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from server.http.patience import PatientHttp

LARGEST = 16384
"""Bytes held at most: a larger piece is worth a write of its own, and must feel the transport's flow control."""


class JoinedWrites:
    """A transport whose small writes within one iteration of the event loop leave together, in order; else the same."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.inner = transport
        self._loop = loop
        self._held: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send this soon; at once if it is large."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)
        if len(data) > LARGEST:
            self.flush()

    def flush(self) -> None:
        """Send what is held."""
        if self._held:
            held, self._held = self._held, []
            self.inner.write(b"".join(held))

    def close(self) -> None:
        """Send what is held, and then close."""
        self.flush()
        self.inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Http(PatientHttp):
    """uvicorn's HTTP/1.1 over joined writes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", JoinedWrites(transport, self.loop)))
