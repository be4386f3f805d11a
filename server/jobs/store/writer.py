"""One thread that owns the writing connection and commits together what arrived together (group commit).

With `synchronous=FULL` every commit waits for the disk, 0.1 to 10 ms. While one does, the next operations queue up
and then share a single commit, so that throughput does not fall with the disk's latency. Claims and leases promise
nothing to anybody who survives a power cut (their workers die in it too), so they alone commit with `NORMAL`, which
leaves the write-ahead log in order but does not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import apsw

from server.jobs.store.errors import DiskRefusedError, StoreError
from server.jobs.store.job import Job

T = TypeVar("T")
Change = tuple[Job | None, Job | None]
"""A row before and after; None is a row that does not exist."""

MAX_BATCH = 256


class Transaction:
    """What an operation sees: the connection, and the list of row changes that become true at the commit."""

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.changes: list[Change] = []

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; all its rows."""
        return self.connection.execute(query, values).fetchall()


@dataclass
class _Operation(Generic[T]):
    run: Callable[[Transaction], T]
    is_promise: bool
    future: Future[T]


class GroupCommit:
    """Runs operations one after the other inside shared transactions.

    An operation may raise StoreError only before its first write: then it alone fails. Any other error rolls the
    whole batch back, and its operations are run again one by one, so that a failing one takes no other with it.

    Args: connection: used by this object's thread alone from now on. on_commit: called with all changes of a
        transaction, after it is durable and before the caller learns of it.
    """

    def __init__(self, connection: apsw.Connection, on_commit: Callable[[list[Change]], None]) -> None:
        self._connection = connection
        self._on_commit = on_commit
        self._inbox: SimpleQueue[_Operation[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def run(self, operation: Callable[[Transaction], T], is_promise: bool = True) -> T:
        """Run one operation; returns its result after the commit.

        Args: is_promise: what it returns must outlive a power cut, so the commit waits for the disk. Without that
            it survives kill -9 all the same, and a later promise carries it to the disk.
        Raises: StoreError if the store is closed, or the database refused; then nothing of it was stored."""
        return self.post(operation, is_promise).result()

    def post(self, operation: Callable[[Transaction], T], is_promise: bool = False) -> Future[T]:
        """The same without waiting: it takes its turn after everything that came before it.

        Raises: StoreError if the store is closed."""
        waiting = _Operation(operation, is_promise, Future[T]())
        with self._lock:
            if self._is_closed:
                raise StoreError("the store is closed")
            self._inbox.put(waiting)
        return waiting.future

    def close(self) -> None:
        """Finish what was accepted, then close the connection. Idempotent."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._inbox.put(None)
        self._thread.join()

    def _loop(self) -> None:
        is_open = True
        while is_open:
            batch = [self._inbox.get(), *self._already_waiting()]
            self._commit([operation for operation in batch if operation is not None])
            is_open = None not in batch
        self._connection.close()

    def _already_waiting(self) -> list[_Operation[Any] | None]:
        waiting: list[_Operation[Any] | None] = []
        try:
            while len(waiting) < MAX_BATCH - 1:
                waiting.append(self._inbox.get_nowait())
        except Empty:
            pass
        return waiting

    def _commit(self, batch: list[_Operation[Any]]) -> None:
        if not batch:
            return
        transaction = Transaction(self._connection)
        try:
            level = "FULL" if any(operation.is_promise for operation in batch) else "NORMAL"
            self._connection.execute(f"PRAGMA synchronous = {level}")
            self._connection.execute("BEGIN IMMEDIATE")
            results = [self._attempt(operation, transaction) for operation in batch]
            self._connection.execute("COMMIT")
        except Exception as exc:
            self._roll_back()
            self._recommit_alone(batch, exc)
            return
        self._on_commit(transaction.changes)
        for operation, (result, refusal) in zip(batch, results, strict=True):
            if refusal is None:
                operation.future.set_result(result)
            else:
                operation.future.set_exception(refusal)

    @staticmethod
    def _attempt(operation: _Operation[Any], transaction: Transaction) -> tuple[Any, StoreError | None]:
        try:
            return operation.run(transaction), None
        except StoreError as refusal:
            return None, refusal

    def _recommit_alone(self, batch: list[_Operation[Any]], cause: Exception) -> None:
        if len(batch) == 1:
            batch[0].future.set_exception(_as_store_error(cause))
            return
        for operation in batch:
            self._commit([operation])

    def _roll_back(self) -> None:
        # SQLite itself rolls back on some errors (a full disk among them), so there may be nothing left to undo.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _as_store_error(cause: Exception) -> Exception:
    if not isinstance(cause, apsw.Error):
        return cause
    is_full = isinstance(cause, apsw.FullError)
    error = (
        DiskRefusedError(f"the disk is full ({cause})") if is_full else StoreError(f"the database refused ({cause})")
    )
    error.__cause__ = cause
    return error
