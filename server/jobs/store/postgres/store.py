"""The store that several nodes share: one PostgreSQL database, the same contract as in one file."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from server.jobs.store import platform_outcomes, transitions
from server.jobs.store.base import Channel, Elsewhere, StoreListener
from server.jobs.store.batches import Change
from server.jobs.store.budgets import Pending
from server.jobs.store.deliveries import WebhookDelivery
from server.jobs.store.dialect import Dialect
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job, JobStatus
from server.jobs.store.nodes import KEPT_S, NodeReport, SeenNode
from server.jobs.store.postgres.notices import Gone, Mark, mark_of, params_of
from server.jobs.store.postgres.session import (
    FLUSH,
    Session,
    address_of,
    connect,
    first_line,
    found_at,
    hang_up,
    migrate,
    refused,
    rows,
    where,
)
from server.jobs.store.postgres.writer import SILENT_S, PostgresTransaction, PostgresWriter
from server.jobs.store.queue_index import QueueIndex
from server.jobs.store.sql import UNFINISHED, SqlStore, jobs
from server.jobs.store.words import MOST_WORDS, words

logger = logging.getLogger("fluxserve.store")

READERS = 8
"""Connections for reading, at most."""
SEARCHERS = 2
"""And for what may take long, so that no poll waits for it."""
HOLD_S = 60.0
"""A webhook that one node is about to deliver is left alone by the others for so long."""


class Reader:
    """Asks over a pool of so many connections. Raises: StoreError; at once while the database is known to be away."""

    def __init__(self, address: str, problem: Callable[[], str | None], connections: int) -> None:
        self._problem = problem
        self._pool: ConnectionPool[Session] = ConnectionPool(
            address, min_size=1, max_size=connections, timeout=5.0, kwargs={"autocommit": True}, open=True
        )
        self._asked: set[Session] = set()

    def __call__(self, query: str, values: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for is_last in (False, True):
            if (problem := self._problem()) is not None:
                raise StoreError(problem)
            try:
                with self._pool.connection() as connection, self._asking(connection):
                    return iter(rows(connection, query, values))
            except PoolClosed:
                raise StoreError("the store is closed") from None
            except PoolTimeout as exc:
                raise StoreError(f"the database does not answer: {first_line(exc)}") from exc
            except psycopg.OperationalError as exc:
                # A connection of before the database went away and came back.
                if is_last:
                    raise refused(exc) from exc
                self._pool.check()
            except psycopg.Error as exc:
                raise refused(exc) from exc
        raise AssertionError

    def close(self) -> bool:
        """Whether it was open until now. Who still waits for an answer has an error instead."""
        was_open = not self._pool.closed
        self._pool.close(timeout=2.0)
        for connection in tuple(self._asked):
            hang_up(connection)
        return was_open

    @contextmanager
    def _asking(self, connection: Session) -> Iterator[None]:
        self._asked.add(connection)
        try:
            yield
        finally:
            self._asked.discard(connection)


_DUE_IN_TURN = """
WITH RECURSIVE
    receiver (name) AS (
        SELECT min(receiver) FROM webhook WHERE due_at IS NOT NULL
        UNION ALL
        SELECT (SELECT min(receiver) FROM webhook WHERE due_at IS NOT NULL AND receiver > name)
        FROM receiver WHERE name IS NOT NULL
    ),
    due AS (
        SELECT first.job_seq, row_number() OVER (PARTITION BY receiver.name ORDER BY first.due_at) AS place
        FROM receiver CROSS JOIN LATERAL (
            SELECT job_seq, webhook.due_at FROM webhook
            WHERE webhook.receiver = receiver.name AND webhook.due_at <= ?1
            AND (held_until <= ?1 OR held_by = current_setting('fluxserve.writer')) ORDER BY webhook.due_at LIMIT ?3
        ) AS first
    )
"""


def _question(text: str) -> str:
    """All of these words, or beginnings of words."""
    return " & ".join(f"'{word}':*" for word in words(text)[:MOST_WORDS])


class PostgresStore(SqlStore):
    """`Store` for several nodes. See `server.jobs.store.base.Store` for what every method promises.

    Every node keeps the index of what waits and runs in memory, fed by the notices of all; the rest is read. Leases
    and deadlines go by the database's clock.

    Args: address: a connection string or URI as libpq reads it; what it leaves out comes from the PG... variables and
        ~/.pgpass. clock: in the place of the database's, for tests.
    Raises: StoreError if it cannot be reached, is too old, or a newer version wrote it.
    """

    _claims_are_promises = True  # a worker outlives the database, and its claim must
    _derived_columns = ("model", "size", "queue_rank", "brief", "http_status")
    _dialect = Dialect(
        contains="strpos(input, ?) > 0",
        brief="brief",
        http_status="http_status",
        by_search="",
        by_order="",
        has_words="SELECT job_seq FROM job_text WHERE words @@ ?::tsquery",
        question=_question,
        note_words="INSERT INTO job_text (job_seq, words) VALUES (?, array_to_tsvector(?::text[]))",
        words=words,
        due_in_turn=_DUE_IN_TURN,
        as_is="OVERRIDING SYSTEM VALUE",
        count_on=tuple(
            f"SELECT setval(pg_get_serial_sequence('{table}', '{number}'), max({number})) FROM {table} "
            f"HAVING max({number}) IS NOT NULL"
            for table, number in (("job", "seq"), ("webhook_try", "number"))
        ),
    )
    _read: Reader
    _search: Reader

    def __init__(self, address: str, clock: Callable[[], float] | None = None) -> None:
        super().__init__()
        self._name = secrets.token_hex(4)
        self._known: dict[str, Mark] = {}
        self._listeners: list[StoreListener] = []
        self._held: dict[tuple[str, int, int], float] = {}
        self._looked_at = 0.0
        whole = address_of(address, self._name)
        _migrate(whole)
        self._writer: PostgresWriter = PostgresWriter(
            whole, self._name, self._note_changes, self._note_notices, self._fill, clock
        )
        self._read = Reader(whole, lambda: self._writer.problem, READERS)
        self._search = Reader(whole, lambda: self._writer.problem, SEARCHERS)

    def now(self) -> float:
        return self._writer.now()

    def listen(self, listener: StoreListener) -> None:
        self._listeners.append(listener)

    def recover(self) -> list[Job]:
        """Nothing: what runs may be another node's, and what a dead one left its leases give back."""
        return []

    def end_ephemeral(self) -> int:
        """Nothing: `expire` ends those of dead nodes, when the others have had the time to say that they live."""
        return 0

    def expire(self, living: frozenset[str] = frozenset()) -> list[Job]:
        return self._end_what_dead_nodes_left() + super().expire(living)

    def _lost(self, tx: PostgresTransaction, living: frozenset[str]) -> list[Job]:
        return super()._lost(tx, living) if self._writer.is_settled else []

    def due_webhooks(self, limit: int, per_receiver: int | None = None) -> list[WebhookDelivery]:
        due = super().due_webhooks(limit, per_receiver)
        at = time.monotonic()
        held = {key: until for key, until in self._held.items() if until > at}
        new = [delivery.job_id for delivery in due if _key(delivery) not in held]
        ours = self._writer.run(lambda tx: self._hold(tx, new), is_promise=False) if new else set()
        due = [delivery for delivery in due if _key(delivery) in held or delivery.job_id in ours]
        self._held = {_key(delivery): held.get(_key(delivery), at + HOLD_S / 2) for delivery in due}
        return due

    # Statements of their own and not the writer's: once a second of every node, and nothing else depends on them.

    def note_node(self, report: NodeReport) -> frozenset[str]:
        self._read("DELETE FROM node WHERE seen_at < ?", (self.now() - KEPT_S,))
        note = (
            "INSERT INTO node (name, report, names, seen_at) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE "
            "SET report = excluded.report, names = excluded.names, seen_at = excluded.seen_at RETURNING resting"
        )
        said = asdict(report) | {"writer": self._name}
        values = (report.name, json.dumps(said), sorted(report.names), self.now())
        ((resting,),) = self._read(note, values)
        return report.names & set(resting)

    def forget_node(self, name: str) -> None:
        self._read("DELETE FROM node WHERE name = ?", (name,))

    def nodes(self) -> list[SeenNode]:
        now, seen = self.now(), self._read("SELECT report, resting, seen_at FROM node ORDER BY name", ())
        reports = [(_report(json.loads(report)), resting, seen_at) for report, resting, seen_at in seen]
        return [SeenNode(report, now - seen_at, report.names & set(resting)) for report, resting, seen_at in reports]

    def rest(self, name: str, is_wanted: bool) -> bool:
        resting = "array_remove(resting, ?1)"
        order = f"array_append({resting}, ?1)" if is_wanted else resting
        return bool(list(self._read(f"UPDATE node SET resting = {order} WHERE ?1 = ANY (names) RETURNING 1", (name,))))

    @property
    def channel(self) -> Channel:
        return self

    def tell(self, texts: Sequence[str]) -> None:
        # Its commit holds a lock that everybody needs who gives notice, and so must not wait for the disk.
        query = (
            "SELECT set_config('synchronous_commit', 'off', true), pg_notify(?1, text) FROM unnest(?2::text[]) AS text"
        )
        self._read(query, (self._writer.talk, list(texts)))

    def hear(self, take: Callable[[str], None], on_return: Callable[[], None]) -> None:
        self._writer.hear(take, on_return)

    @property
    def problem(self) -> str | None:
        return self._writer.problem

    def close(self) -> None:
        self._search.close()
        if self._read.close():
            self._writer.close()

    def _hold(self, tx: PostgresTransaction, job_ids: list[str]) -> set[str]:
        """Which of these webhooks are this node's to deliver for now."""
        take = (
            "UPDATE webhook SET held_by = ?1, held_until = ?2 FROM job WHERE job.seq = webhook.job_seq "
            "AND job.id = ANY (?3) AND (held_until <= ?4 OR held_by = ?1) RETURNING job.id"
        )
        return {job_id for (job_id,) in tx.execute(take, (self._name, tx.now + HOLD_S, job_ids, tx.now))}

    def _end_what_dead_nodes_left(self) -> list[Job]:
        """Asked every second, and looked at once in a while."""
        if time.monotonic() < self._looked_at + SILENT_S / 3 or not self._writer.is_settled:
            return []
        self._looked_at = time.monotonic()
        silent = "SELECT 1 FROM writer WHERE seen_at < ? AND NOT is_buried AND name <> ? LIMIT 1"
        is_any = list(self._read(silent, (self.now() - SILENT_S, self._name)))
        return self._writer.run(self._bury) if is_any else []

    def _bury(self, tx: PostgresTransaction) -> list[Job]:
        """End the runs on connections of nodes that are gone, and doubt the answers that they have not noted."""
        if not self._writer.is_settled:  # since it was asked for
            return []
        bury = "UPDATE writer SET is_buried = TRUE WHERE seen_at < ? AND NOT is_buried AND name <> ? RETURNING name"
        names = [name for (name,) in tx.execute(bury, (tx.now - SILENT_S, self._name))]
        if not names:
            return []
        # A node that was stopped has said that it leaves, and a command that wrote was none.
        nodes = tx.execute("SELECT name, report FROM node ORDER BY name")
        if lost := [name for name, report in nodes if json.loads(report).get("writer") in names]:
            logger.warning("nodes that have not been heard of for %.0f s: %s", SILENT_S, ", ".join(lost))
        tx.execute("UPDATE submission SET is_undelivered = TRUE WHERE name IS NULL AND writer = ANY (?)", (names,))
        gone = jobs(tx, "WHERE is_ephemeral = 1 AND finished_at IS NULL AND writer = ANY (?)", (names,))
        return self._save_all(
            tx, [(job, transitions.ended(job, platform_outcomes.disconnected(), tx.now)) for job in gone]
        )

    def _tell_gone(self, tx: Any, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        tx.gone += [Gone(job_id, JobStatus(status)) for job_id, status in rows]
        return rows

    # The index in memory

    def _fill(self, tx: PostgresTransaction, free: Callable[[], object]) -> None:
        """Load it whole, in the place of the one that was. What has ended is counted when the lock is free again."""
        line, pending, known = QueueIndex(), Pending(), {}
        for unfinished in UNFINISHED:
            for row in tx.execute(f"SELECT {_MARK} FROM job {unfinished}"):
                mark = _mark(row)
                line.change(None, mark)
                pending.change(None, mark)
                known[mark.id] = mark
        free()
        for status, number in tx.execute(
            "SELECT status, count(*) FROM job WHERE finished_at IS NOT NULL GROUP BY status"
        ):
            line.count(JobStatus(status), number)
        self._line, self._pending, self._known = line, pending, known

    def _note_changes(self, changes: list[Change]) -> None:
        for _, after in changes:
            if after is not None:
                self._note(after)

    def _note_notices(self, told: list[Mark | Gone]) -> None:
        for entry in told:
            if isinstance(entry, Mark):
                self._note(entry)
            else:
                self._line.forget(entry.id, entry.status)
        heard = [Elsewhere(entry.id, entry.status, entry.cancel_requested) for entry in told if isinstance(entry, Mark)]
        for listener in self._listeners:
            listener(heard)

    def _note(self, after: Mark | Job) -> None:
        before = self._known.pop(after.id, None)
        self._line.change(before, after)
        self._pending.change(before, after)
        if not after.status.is_finished:
            self._known[after.id] = after if isinstance(after, Mark) else mark_of(after)


_MARK = (
    "seq, id, endpoint, tenant, key_id, status, created_at, queue_rank, deaths, "
    "CASE WHEN params IS NOT NULL THEN size END, cancel_requested, "
    "CASE WHEN status = 'queued' THEN octet_length(input) ELSE 0 END"
)


def _mark(row: tuple[Any, ...]) -> Mark:
    *told, status, created_at, rank, deaths, size, cancel, input_size = row
    seq, job_id, endpoint, tenant, key_id = told
    params = None if size is None else params_of(json.loads(size))
    state = JobStatus(status), created_at, rank, deaths, params, bool(cancel), input_size
    return Mark(seq, job_id, endpoint, tenant, key_id, *state)


def _report(said: dict[str, Any]) -> NodeReport:
    """What a node says of itself; a later version may say more."""
    known = {field.name for field in fields(NodeReport)}
    return NodeReport(**{name: value for name, value in said.items() if name in known})


def _key(delivery: WebhookDelivery) -> tuple[str, int, int]:
    return delivery.job_id, delivery.round, delivery.tries


def _migrate(address: str) -> None:
    """Raises: StoreError."""
    try:
        with connect(address) as session:
            migrate(session, found_at(session))
            session.execute(FLUSH)  # which every submit needs: refused later, it would leave commits in doubt
    except psycopg.Error as exc:
        raise StoreError(f"the database {where(address)} cannot be used: {first_line(exc)}") from exc
