"""The thread that writes: one connection a node, one transaction at a time in the whole cluster.

Whoever writes holds an advisory lock, so that every rule of the contract holds across nodes exactly as it does in one:
limits, budgets, turns, repeats. It is short: what arrived together shares one transaction, and the wait for the disk
comes after the lock is given back, where those of all nodes overlap (PostgreSQL flushes them together).

The same connection listens. PostgreSQL hands notices out in the order of the commits, and those of every earlier
transaction before it says that the lock is ours: a transaction decides upon an index that is complete.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus

from server.jobs.store.batches import Batches, Change, Operation, Result, answer
from server.jobs.store.errors import InDoubtError, StoreError
from server.jobs.store.postgres import notices
from server.jobs.store.postgres.notices import Gone, Mark
from server.jobs.store.postgres.session import (
    FLUSH,
    FROZEN_S,
    Place,
    Session,
    connect,
    first_line,
    found_at,
    refused,
    rows,
    where,
)

logger = logging.getLogger("fluxserve.store")
T = TypeVar("T")

PING_S = FROZEN_S / 2
"""An idle connection is asked for the time this often, which shows as well that it is alive."""
SILENT_S = 15.0
"""A node that has not been heard of for so long is taken for dead by the others; its lock is free before."""
PATIENCE_S = 10.0
"""So long a caller waits; longer than a node that is frozen with the lock in its hands keeps the others out."""
CLOSE_S = 3.0
"""So long a close waits for the database, which may be what does not answer."""
GRACE_S = 10.0
"""No lease is taken for expired before the database has answered for so long without a gap: whoever holds one, and was
kept from it as well, shall have had the time to connect (two seconds between tries, five for one) and to renew it."""
PAUSES_S = (0.1, 2.0)
"""Between tries to connect again: the first, doubled up to the last."""

_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


@dataclass
class PostgresTransaction:
    """See `server.jobs.store.batches.Transaction`. Args: gone: ended jobs that it deletes."""

    session: Session
    now: float
    changes: list[Change] = field(default_factory=list)
    gone: list[Gone] = field(default_factory=list)

    def execute(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return rows(self.session, query, values)


@dataclass(frozen=True)
class _InDoubt:
    """A batch whose commit was on its way when the connection broke."""

    number: int
    batch: list[Operation[PostgresTransaction, Any]]
    results: list[Result]


class PostgresWriter(Batches[PostgresTransaction]):
    """See `Batches`. While the database is away every call fails at once, and the connection is tried again.

    Args:
        address: as `session.address_of` makes it. name: of this life of the node among those who write.
        on_notice: called with what other nodes changed, in their order, always on this thread.
        load: reads what the index needs, whenever a connection was made. Holds the lock until it calls its second
            argument, and sees until its end what was true then.
        clock: in the place of the database's, for tests.
    Raises: StoreError if it cannot be reached now.
    """

    def __init__(
        self,
        address: str,
        name: str,
        on_commit: Callable[[list[Change]], None],
        on_notice: Callable[[list[Mark | Gone]], None],
        load: Callable[[PostgresTransaction, Callable[[], object]], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(on_commit)
        self._address = address
        self._name = name
        self._on_notice = on_notice
        self._load = load
        self._clock = clock
        self._behind_s = 0.0
        self._number = 0
        self._committed = 0
        self._notices: list[tuple[int, str]] = []
        self._hear: Callable[[str], None] = lambda text: None
        self._on_return: Callable[[], None] = lambda: None
        self._doubt: _InDoubt | None = None
        self._is_committing = False
        self._must_look = False
        self._seen_at = 0.0
        self._retry_at, self._pause_s = 0.0, PAUSES_S[0]
        self._answers_since = 0.0
        self._given_up: Future[object] = Future()
        self._problem: str | None = None
        self._session, self._place = self._opened()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._thread.start()

    @property
    def problem(self) -> str | None:
        """Why nothing can be stored now: the connection is gone, or whole and silent, as above a disk that hangs."""
        is_silent = time.monotonic() > self._seen_at + PING_S + PATIENCE_S
        return self._problem or (f"the database {where(self._address)} does not answer" if is_silent else None)

    @property
    def talk(self) -> str:
        """The channel of what nodes tell each other besides."""
        return self._place.talk

    def hear(self, take: Callable[[str], None], on_return: Callable[[], None]) -> None:
        """See `server.jobs.store.base.Channel`."""
        self._hear, self._on_return = take, on_return

    def now(self) -> float:
        """Unix seconds of the database's clock, as far as this node's steady one has kept up since it was asked."""
        return self._clock() if self._clock is not None else time.monotonic() + self._behind_s

    @property
    def is_settled(self) -> bool:
        """Whether the database has answered for long enough that every node which can reach it has had its turn."""
        return self.now() >= self._answers_since + GRACE_S

    def run(self, operation: Callable[[PostgresTransaction], T], is_promise: bool = True, must_know: bool = False) -> T:
        """See `Batches.run`. Args: must_know: wait for as long as it takes to learn whether it was committed.

        What is refused because nothing answers is not done later either. Raises: InDoubtError if it had begun."""
        result = self.post(operation, is_promise)
        wait((cast("Future[object]", result), self._given_up), None if must_know else PATIENCE_S, FIRST_COMPLETED)
        if result.cancel():
            raise StoreError("the database does not answer: nothing was stored")
        if not result.done():
            raise InDoubtError(result)
        return result.result()

    def close(self) -> None:
        """As `Batches.close`, but for what the database does not answer within CLOSE_S: that is not known."""
        self._ask_to_end()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.error("the database does not answer: what was under way is left to it")
            self._given_up.set_result(None)

    def _put(self, operation: Operation[PostgresTransaction, Any] | None) -> None:
        if operation is not None and self.problem is not None:
            raise StoreError(self.problem)
        super()._put(operation)
        with suppress(OSError):  # it has been rung already, or nobody is left to hear it
            self._ringer.send(b"!")

    def _loop(self) -> None:
        is_open = True
        while is_open:
            try:
                self._wait()
            except psycopg.Error as exc:
                self._lose(exc)
            batch = self._already_waiting()
            is_open = None not in batch
            operations = [operation for operation in batch if operation is not None]
            if self._session.closed:
                self._refuse(operations)
                if is_open:
                    self._connect_again()
                continue
            try:
                self._listen()
                self._commit(operations)
            except Exception as exc:  # a fault of ours in what is made of notices must not end the thread
                self._lose(exc)
                self._refuse(operations)
        self._shut()

    def _wait(self) -> None:
        """Until an operation arrives, or a notice, or it is time to ask whether the database is there."""
        sources = select.poll()  # not select(), which takes no descriptor beyond 1,023
        sources.register(self._bell, select.POLLIN)
        if self._session.closed:
            timeout_s = max(0.0, self._retry_at - time.monotonic())
        else:
            sources.register(self._session.fileno(), select.POLLIN)
            # What arrived during our own statements lies in memory: the socket says nothing of it any more.
            timeout_s = 0.0 if self._notices else max(0.0, self._seen_at + PING_S - time.monotonic())
        sources.poll(math.ceil(timeout_s * 1000))
        with suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass

    # The connection

    def _opened(self) -> tuple[Session, Place]:
        """A connection with the index loaded. Raises: StoreError."""
        try:
            session = connect(self._address)
        except psycopg.Error as exc:
            raise StoreError(f"the database {where(self._address)} cannot be reached: {first_line(exc)}") from exc
        try:
            place = found_at(session)
            session.add_notify_handler(lambda notice: self._sort(notice.channel, notice.pid, notice.payload))
            self._prepare(session, place)
            self._answers_since = self.now()
        except psycopg.Error as exc:
            session.close()
            raise StoreError(f"the database {where(self._address)} cannot be used: {first_line(exc)}") from exc
        except BaseException:
            session.close()
            raise
        return session, place

    def _prepare(self, session: Session, place: Place) -> None:
        """Listen, then load: what is told before the load is in it, and what comes after is told."""
        session.execute(f"LISTEN {place.channel}")
        session.execute(f"LISTEN {place.talk}")
        session.execute("SELECT pg_advisory_lock(%s)", (place.lock,))
        self._notices.clear()
        self._must_look = False
        with session.transaction():
            ((now,),) = session.execute(_NOW).fetchall()
            self._settle_clock(now)
            hello = (
                "INSERT INTO writer (name, batch, seen_at) VALUES (%s, 0, %s) "
                "ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at, is_buried = FALSE RETURNING batch"
            )
            ((committed,),) = session.execute(hello, (self._name, self.now())).fetchall()
        with session.transaction():
            session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            transaction = PostgresTransaction(session, self.now())
            self._load(transaction, lambda: session.execute("SELECT pg_advisory_unlock(%s)", (place.lock,)))
        self._committed = committed

    def _end_doubt(self) -> None:
        doubt, self._doubt = self._doubt, None
        if doubt is None:
            return
        if doubt.number == self._committed:
            answer(doubt.batch, doubt.results)
        else:
            self._refuse(doubt.batch, "the database went away before the commit: nothing was stored")

    def _connect_again(self) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            self._session, self._place = self._opened()
        except Exception as exc:  # whatever it is, the thread must not end: it alone can connect again
            if not isinstance(exc, StoreError):
                logger.exception("the database cannot be taken up")
            self._problem = str(exc) if isinstance(exc, StoreError) else "the database cannot be used: see the log"
            self._retry_at = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, PAUSES_S[1])
            return
        self._pause_s = PAUSES_S[0]
        self._problem = None
        logger.warning("the database is back")
        self._end_doubt()
        try:
            self._on_return()
        except Exception:
            logger.exception("whoever waited for the database could not be told that it is back")

    def _lose(self, cause: Exception) -> None:
        """The connection is of no use any more."""
        with suppress(Exception):
            self._session.close()
        self._problem = f"the database {where(self._address)} went away: {first_line(cause)}"
        self._retry_at = time.monotonic()
        logger.error("%s", self._problem, exc_info=None if isinstance(cause, psycopg.Error) else cause)

    def _listen(self) -> None:
        """Take what the server has sent, and look at an idle connection once in a while."""
        self._session.pgconn.consume_input()
        while (notice := self._session.pgconn.notifies()) is not None:
            self._sort(notice.relname.decode(), notice.be_pid, notice.extra.decode())
        if time.monotonic() >= self._seen_at + PING_S:
            ((now,),) = self._session.execute(_NOW).fetchall()
            self._settle_clock(now)
            self._session.execute("SET synchronous_commit = off")
            ping = "UPDATE writer SET seen_at = %s, is_buried = FALSE WHERE name = %s"
            self._session.execute(ping, (self.now(), self._name))
            self._session.execute("SET synchronous_commit = on")
        self._take_notices()
        if self._must_look:
            self._prepare(self._session, self._place)

    def _settle_clock(self, now: float) -> None:
        gap_s = now - self._seen_at - self._behind_s
        self._seen_at = time.monotonic()
        self._behind_s = now - self._seen_at
        if gap_s > 2 * PING_S:  # a database that was frozen, say, with every connection to it intact
            self._answers_since = self.now()

    def _sort(self, channel: str, pid: int, payload: str) -> None:
        if channel.endswith("_talk"):
            self._hear(payload)
        else:
            self._notices.append((pid, payload))

    def _take_notices(self) -> None:
        """Tell what others have changed; what this node changed itself it knows."""
        taken, self._notices = self._notices, []
        own = self._session.info.backend_pid
        told = [entry for pid, payload in taken if pid != own for entry in notices.read(payload)]
        self._must_look |= None in told
        if told:
            self._on_notice([entry for entry in told if entry is not None])

    # Transactions

    def _begin(self, is_promise: bool) -> PostgresTransaction:
        self._session.execute("SELECT pg_advisory_lock(%s)", (self._place.lock,))
        self._take_notices()
        self._number += 1
        # A node that is always busy never pings: that it writes shows as well that it is alive.
        seen_at = f"({_NOW})" if self._clock is None else repr(float(self._clock()))
        cursor = self._session.execute(
            "BEGIN; SET LOCAL synchronous_commit = off; "
            f"UPDATE writer SET batch = {self._number}, seen_at = {seen_at}, is_buried = FALSE "
            f"WHERE name = '{self._name}'; {_NOW}".encode(),
            prepare=False,
        )
        while cursor.nextset():
            pass
        ((now,),) = cursor.fetchall()
        self._settle_clock(now)
        return PostgresTransaction(self._session, self.now() if self._clock is not None else now)

    def _end(self, transaction: PostgresTransaction, is_promise: bool) -> None:
        changed = [after for _, after in transaction.changes if after is not None]
        if texts := list(notices.payloads(changed, transaction.gone)):
            query = "SELECT pg_notify(%s, text) FROM unnest(%s::text[]) AS text"
            self._session.execute(query, (self._place.channel, texts))
        flush = f"; {FLUSH}" if is_promise else ""
        self._is_committing = True
        self._session.execute(f"COMMIT; SELECT pg_advisory_unlock({self._place.lock}){flush}".encode(), prepare=False)
        self._is_committing = False

    def _roll_back(self) -> None:
        if not self._session.closed and self._session.info.transaction_status is not TransactionStatus.UNKNOWN:
            with suppress(psycopg.Error):
                self._session.execute(b"ROLLBACK; SELECT pg_advisory_unlock_all()", prepare=False)

    def _failed(
        self, batch: list[Operation[PostgresTransaction, Any]], results: list[Result], cause: Exception
    ) -> None:
        if self._is_committing:  # also if the connection is whole: the transaction, or only what follows it, has failed
            self._is_committing = False
            self._lose(cause)
            self._doubt = _InDoubt(self._number, batch, results)
        elif isinstance(cause, psycopg.errors.LockNotAvailable):  # one by one, each would wait as long
            self._refuse(batch, str(refused(cause)))
        elif _is_of_use(self._session) and not isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
            super()._failed(batch, results, cause)
        else:
            self._lose(cause)
            self._refuse(batch)

    def _refuse(self, batch: list[Operation[PostgresTransaction, Any]], why: str | None = None) -> None:
        for operation in batch:
            operation.refuse(StoreError(why or self.problem or "the database is away"))

    def _as_store_error(self, cause: Exception) -> Exception:
        if not isinstance(cause, psycopg.Error):
            return cause
        error = refused(cause)
        error.__cause__ = cause
        return error

    def _shut(self) -> None:
        if self._doubt is not None:
            self._refuse(
                self._doubt.batch, "the server ends while the database is away: whether it was stored is not known"
            )
        self._session.close()
        self._bell.close()
        self._ringer.close()


def _is_of_use(session: Session) -> bool:
    return not session.closed and session.info.transaction_status is not TransactionStatus.UNKNOWN
