"""The thread that owns SQLite's writing connection.

With `synchronous=FULL` every commit waits for the disk, 0.1 to 10 ms. While one does, the next operations queue up
and then share a single commit, so that throughput does not fall with the disk's latency. Claims and leases promise
nothing to anybody who survives a power cut (their workers die in it too), so they alone commit with `NORMAL`, which
leaves the write-ahead log in order but does not wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import apsw

from server.jobs.store.batches import Batches, Change
from server.jobs.store.errors import DiskRefusedError, StoreError


class SqliteTransaction:
    """See `server.jobs.store.batches.Transaction`."""

    def __init__(self, connection: apsw.Connection, clock: Callable[[], float]) -> None:
        self.connection = connection
        self.changes: list[Change] = []
        self._clock = clock

    @property
    def now(self) -> float:
        return self._clock()

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self.connection.execute(query, values).fetchall()


class GroupCommit(Batches[SqliteTransaction]):
    """See `Batches`. Args: connection: used by this object's thread alone from now on. clock: Unix seconds."""

    def __init__(
        self,
        connection: apsw.Connection,
        on_commit: Callable[[list[Change]], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(on_commit)
        self._connection = connection
        self._clock = clock
        self._thread.start()

    def _begin(self, is_promise: bool) -> SqliteTransaction:
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if is_promise else 'NORMAL'}")
        self._connection.execute("BEGIN IMMEDIATE")
        return SqliteTransaction(self._connection, self._clock)

    def _end(self, transaction: SqliteTransaction, is_promise: bool) -> None:
        self._connection.execute("COMMIT")

    def _roll_back(self) -> None:
        # SQLite itself rolls back on some errors (a full disk among them), so there may be nothing left to undo.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _shut(self) -> None:
        self._connection.close()

    def _as_store_error(self, cause: Exception) -> Exception:
        if not isinstance(cause, apsw.Error):
            return cause
        is_full = isinstance(cause, apsw.FullError)
        error = (
            DiskRefusedError(f"the disk is full ({cause})")
            if is_full
            else StoreError(f"the database refused ({cause})")
        )
        error.__cause__ = cause
        return error
