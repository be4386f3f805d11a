"""A stored file as an answer, wherever it is kept: Starlette's answer with a file, ranges and all, read in pieces."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from server.files.objects import Objects, StoredObject
from server.http.errors import PlainError


class StoredFileResponse(FileResponse):
    """Args: turns: reads that may be under way in threads at once."""

    def __init__(
        self, objects: Objects, stored: StoredObject, headers: Mapping[str, str], turns: CapacityLimiter
    ) -> None:
        written = int(stored.stored_at or 0)  # what an older server stored does not say
        facts = os.stat_result((0, 0, 0, 0, 0, 0, stored.size, written, written, written))
        super().__init__(stored.key, headers=headers, media_type=stored.content_type, stat_result=facts)
        self.chunk_size = objects.piece_bytes
        self._file = _Reader(objects, stored, turns)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is said before the first piece is there: what cannot be read is an error, not an answer cut short."""
        said: list[Message] = []

        async def send_late(message: Message) -> None:
            if message["type"] == "http.response.start":
                said.append(message)
                return
            while said:
                await send(said.pop())
            await send(message)

        await super().__call__(scope, receive, send_late)

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[Any]:
        self._file.position = 0
        yield self._file


class _Reader:
    """What Starlette does with a file that it has opened."""

    def __init__(self, objects: Objects, stored: StoredObject, turns: CapacityLimiter) -> None:
        self._objects = objects
        self._stored = stored
        self._turns = turns
        self.position = 0

    async def seek(self, position: int) -> None:
        self.position = position

    async def read(self, length: int) -> bytes:
        wanted = min(length, self._stored.size - self.position)
        if wanted <= 0:
            return b""
        read = self._objects.read
        data = await to_thread.run_sync(read, self._stored.key, self.position, wanted, limiter=self._turns)
        if not data:
            raise PlainError(404, "File not found")  # it has been deleted meanwhile
        self.position += len(data)
        return data
