"""One thread that writes, and commits together what arrived together (group commit)."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job

T = TypeVar("T")
Change = tuple[Job | None, Job | None]
"""A row before and after; None is a row that does not exist."""

MAX_BATCH = 256


class Transaction(Protocol):
    """What an operation sees. Args: changes: of rows, which become true at the commit."""

    changes: list[Change]

    @property
    def now(self) -> float:
        """Unix seconds of the store's clock."""

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement; all its rows. A `?` in it stands for the next value, `?1` for the first."""


X = TypeVar("X", bound=Transaction)

Result = tuple[Any, StoreError | None]
"""What an operation returned, or why it refused."""


@dataclass
class Operation(Generic[X, T]):
    """One piece of a batch, and who waits for it."""

    run: Callable[[X], T]
    is_promise: bool
    future: Future[T]

    def is_wanted(self) -> bool:
        """Whether somebody still waits for it; whoever does cannot give it up from now on."""
        return self.future.running() or (not self.future.done() and self.future.set_running_or_notify_cancel())

    def refuse(self, why: Exception) -> None:
        if self.is_wanted():
            self.future.set_exception(why)


class Batches(ABC, Generic[X]):
    """Runs operations one after the other inside shared transactions.

    An operation may raise StoreError only before its first write: then it alone fails. Any other error rolls the
    whole batch back, and its operations are run again one by one, so that a failing one takes no other with it.

    Args: on_commit: called with all changes of a transaction, after it is durable and before the caller learns of it.
    """

    def __init__(self, on_commit: Callable[[list[Change]], None]) -> None:
        self._on_commit = on_commit
        self._inbox: SimpleQueue[Operation[X, Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)

    def run(self, operation: Callable[[X], T], is_promise: bool = True, must_know: bool = False) -> T:
        """Run one operation; returns its result after the commit.

        Args: is_promise: what it returns must outlive a power cut, so the commit waits for the disk. Without that
            it survives kill -9 all the same, and a later promise carries it to the disk.
            must_know: where a commit may be under way for long, wait until it is known whether it came through.
        Raises: StoreError if the store is closed, or the database refused; then nothing of it was stored."""
        return self.post(operation, is_promise).result()

    def post(self, operation: Callable[[X], T], is_promise: bool = False) -> Future[T]:
        """The same without waiting: it takes its turn after everything that came before it, unless the future is
        cancelled before that.

        Raises: StoreError if the store is closed."""
        waiting = Operation(operation, is_promise, Future[T]())
        with self._lock:
            if self._is_closed:
                raise StoreError("the store is closed")
            self._put(waiting)
        return waiting.future

    def close(self) -> None:
        """Finish what was accepted, then close the connection. Idempotent."""
        self._ask_to_end()
        self._thread.join()

    def _ask_to_end(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._put(None)

    @abstractmethod
    def _begin(self, is_promise: bool) -> X:
        """Open a transaction."""

    @abstractmethod
    def _end(self, transaction: X, is_promise: bool) -> None:
        """Commit it."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Undo it after any error."""

    @abstractmethod
    def _as_store_error(self, cause: Exception) -> Exception:
        """What the caller is told of it."""

    @abstractmethod
    def _shut(self) -> None:
        """Close the connection."""

    def _put(self, operation: Operation[X, Any] | None) -> None:
        self._inbox.put(operation)

    def _loop(self) -> None:
        is_open = True
        while is_open:
            batch = [self._inbox.get(), *self._already_waiting()]
            self._commit([operation for operation in batch if operation is not None])
            is_open = None not in batch
        self._shut()

    def _already_waiting(self) -> list[Operation[X, Any] | None]:
        waiting: list[Operation[X, Any] | None] = []
        try:
            while len(waiting) < MAX_BATCH - 1:
                waiting.append(self._inbox.get_nowait())
        except Empty:
            pass
        return waiting

    def _commit(self, batch: list[Operation[X, Any]]) -> None:
        if not batch:
            return
        is_promise = any(operation.is_promise for operation in batch)
        results: list[Result] = []
        try:
            transaction = self._begin(is_promise)
            batch = [operation for operation in batch if operation.is_wanted()]
            results = [self._attempt(operation, transaction) for operation in batch]
            self._end(transaction, is_promise)
        except Exception as exc:
            self._roll_back()
            self._failed(batch, results, exc)
            return
        try:
            self._on_commit(transaction.changes)
        finally:  # whatever becomes of that, it is stored
            answer(batch, results)

    @staticmethod
    def _attempt(operation: Operation[X, Any], transaction: X) -> Result:
        try:
            return operation.run(transaction), None
        except StoreError as refusal:
            return None, refusal

    def _failed(self, batch: list[Operation[X, Any]], results: list[Result], cause: Exception) -> None:
        """Run the operations again one by one, or tell the only one."""
        if len(batch) == 1:
            batch[0].refuse(self._as_store_error(cause))
            return
        for operation in batch:
            self._commit([operation])


def answer(batch: list[Operation[Any, Any]], results: list[Result]) -> None:
    """Tell everybody who waits."""
    for operation, (result, refusal) in zip(batch, results, strict=True):
        if refusal is None:
            operation.future.set_result(result)
        else:
            operation.future.set_exception(refusal)
