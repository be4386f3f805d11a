"""What reached the server, written down by it: proof of how often a client asked, of what, and what it was told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Recorded:
    """One HTTP request. Args: status: of the answer; None if the caller left before it began."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int | None
    answer_headers: dict[str, str]

    @property
    def target(self) -> str | None:
        """Where the proxy endpoint was asked to go."""
        return self.headers.get("x-fal-target-url")


class Recorder:
    """ASGI middleware: one JSON line a request, as its answer begins."""

    def __init__(self, app: ASGIApp, file: Path) -> None:
        self._app = app
        self._file = file.open("a", buffering=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_answer = False

        async def recorded_send(message: Message) -> None:
            nonlocal has_answer
            if message["type"] == "http.response.start":
                has_answer = True
                self._write(scope, message["status"], message.get("headers", []))
            await send(message)

        try:
            await self._app(scope, receive, recorded_send)
        finally:
            if not has_answer:
                self._write(scope, None, [])

    def _write(self, scope: Scope, status: int | None, answer: list[tuple[bytes, bytes]]) -> None:
        entry = Recorded(
            method=scope["method"],
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers=dict(Headers(scope=scope)),
            status=status,
            answer_headers=dict(Headers(raw=answer)),
        )
        self._file.write(json.dumps(asdict(entry)) + "\n")


class Record:
    """The requests since `start` (those of before belong to other tests)."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._from = file.stat().st_size if file.exists() else 0

    def all(self) -> list[Recorded]:
        """Every request, oldest first."""
        with self._file.open() as lines:
            lines.seek(self._from)
            entries: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("\n")]
        return [Recorded(**entry) for entry in entries]

    def of(self, method: str, part: str) -> list[Recorded]:
        """Those of one method with `part` in the path, or in the proxy's target."""
        return [seen for seen in self.all() if seen.method == method and part in (seen.target or seen.path)]
