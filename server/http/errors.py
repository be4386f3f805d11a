"""An error that knows its answer: status, JSON body and headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class WireError(Exception):
    """An answer with an error status; raise it anywhere below a route."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status}: {body.get('detail')}")
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


class PlainError(WireError):
    """A refusal before any request exists: a `detail` sentence alone."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, {"detail": detail}, headers)
