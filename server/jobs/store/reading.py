"""A connection of SQLite that reads: one question at a time, each whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from server.jobs.store.errors import StoreError


class Reader:
    """Any thread may ask; the others wait meanwhile. Raises: apsw.Error if the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection: apsw.Connection | None = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)

    def __call__(self, query: str, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        """All rows of the answer. Raises: StoreError."""
        with self._lock:
            if self._connection is None:
                raise StoreError("the store is closed")
            try:
                return iter(self._connection.execute(query, values).fetchall())
            except apsw.Error as exc:
                raise StoreError(f"cannot read the database: {exc}") from exc

    def close(self) -> bool:
        """Whether it was open until now."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        return connection is not None
