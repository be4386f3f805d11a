"""The webhook tables: pending deliveries and their log, for the node and for an operator's command beside it.

Functions take `execute`, so that they run inside the store's transactions, over its reading connection,
or in a command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from server.jobs.receivers import receiver_of
from server.jobs.store.deliveries import (
    LOG_KEPT_S,
    LOG_ROWS,
    LONGEST_PAUSE_S,
    TRIES_KEPT,
    Redelivery,
    WebhookAnswer,
    WebhookDelivery,
    WebhookTry,
)
from server.jobs.store.dialect import Dialect
from server.jobs.store.errors import StoreError
from server.jobs.store.job import JobStatus

Execute = Callable[[str, tuple[Any, ...]], Iterable[tuple[Any, ...]]]

_SELECT = (
    "SELECT job.id, job.webhook_url, webhook.tries, webhook.note, webhook.round, webhook.due_at, webhook.is_delivered "
    "FROM webhook JOIN job ON job.seq = webhook.job_seq"
)


def enqueue(execute: Execute, job_seq: int, url: str, now: float) -> None:
    """The job has ended and named a webhook: deliver it from now on."""
    execute("INSERT INTO webhook (job_seq, due_at, receiver) VALUES (?, ?, ?)", (job_seq, now, receiver_of(url)))


def due(execute: Execute, now: float, limit: int) -> list[WebhookDelivery]:
    """Deliveries whose time has come, oldest first."""
    rows = execute(f"{_SELECT} WHERE webhook.due_at <= ? ORDER BY webhook.due_at LIMIT ?", (now, limit))
    return [_delivery(row) for row in rows]


def due_in_turn(execute: Execute, now: float, limit: int, per_receiver: int, dialect: Dialect) -> list[WebhookDelivery]:
    """The same, at most `per_receiver` of each receiver: the oldest of each, then the second of each."""
    in_turn = "JOIN due ON due.job_seq = webhook.job_seq ORDER BY due.place, webhook.due_at LIMIT ?2"
    rows = execute(f"{dialect.due_in_turn} {_SELECT} {in_turn}", (now, limit, per_receiver))
    return [_delivery(row) for row in rows]


def mend_times(execute: Execute, now: float) -> None:
    """At a start: what waits for a time that this clock would not have set was written by one that was ahead."""
    execute(
        "UPDATE webhook SET due_at = ?1 WHERE due_at > ?1 AND (tries = 0 OR due_at > ?1 + ?2)", (now, LONGEST_PAUSE_S)
    )


def newest(execute: Execute, limit: int) -> list[WebhookDelivery]:
    """The deliveries of the requests that were stored last, newest first."""
    return [_delivery(row) for row in execute(f"{_SELECT} ORDER BY webhook.job_seq DESC LIMIT ?", (limit,))]


def of_job(execute: Execute, job_id: str) -> WebhookDelivery | None:
    """What is known of one request's delivery; None if it owes none, has not ended, or is no longer kept."""
    for row in execute(f"{_SELECT} WHERE job.id = ?", (job_id,)):
        return _delivery(row)
    return None


def tries(execute: Execute, job_id: str) -> list[WebhookTry]:
    """Every try of one request that is still in the log, oldest first."""
    rows = execute(
        "SELECT job_id, began_at, duration_s, http_status, note, verdict FROM webhook_try "
        "WHERE job_id = ? ORDER BY number",
        (job_id,),
    )
    return [WebhookTry(*row) for row in rows]


def settle(
    execute: Execute, delivery: WebhookDelivery, answer: WebhookAnswer, next_in_s: float | None, now: float
) -> None:
    """Log one try, and say when the next is due; an order to deliver again that came meanwhile stands."""
    entry = answer.as_try(delivery.job_id, now, next_in_s)
    execute(
        "INSERT INTO webhook_try (job_id, began_at, duration_s, http_status, note, verdict) VALUES (?, ?, ?, ?, ?, ?)",
        (entry.job_id, entry.began_at, entry.duration_s, entry.http_status, entry.note, entry.verdict),
    )
    execute(
        "DELETE FROM webhook_try WHERE job_id = ?1 AND number <= "
        "(SELECT number FROM webhook_try WHERE job_id = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
        (delivery.job_id, TRIES_KEPT),
    )
    due_at = None if entry.verdict != "again" or next_in_s is None else now + next_in_s
    execute(
        "UPDATE webhook SET tries = tries + 1, note = ?, due_at = ?, is_delivered = ? "
        "WHERE job_seq = (SELECT seq FROM job WHERE id = ?) AND round = ?",
        (answer.note, due_at, int(answer.is_delivered), delivery.job_id, delivery.round),
    )


def refusal(execute: Execute, job_id: str) -> Redelivery | None:
    """Why this job's webhook cannot be delivered now; None if it can."""
    for status, url in execute("SELECT status, webhook_url FROM job WHERE id = ?", (job_id,)):
        if url is None:
            return Redelivery.NO_WEBHOOK
        return None if JobStatus(status).is_finished else Redelivery.NOT_FINISHED
    return Redelivery.FORGOTTEN if tries(execute, job_id) else Redelivery.NOT_FOUND


def order_again(execute: Execute, job_id: str, now: float) -> Redelivery:
    """Make a delivery due now, with all its tries before it."""
    refused = refusal(execute, job_id)
    if refused is not None:
        return refused
    execute(
        "UPDATE webhook SET round = round + 1, tries = 0, is_delivered = 0, due_at = ? "
        "WHERE job_seq = (SELECT seq FROM job WHERE id = ?)",
        (now, job_id),
    )
    return Redelivery.ORDERED


def sweep(execute: Execute, now: float, limit: int) -> bool:
    """Drop from the log what is too old, and the oldest of what is too much, at most so many; whether any was."""
    gone = execute(
        "DELETE FROM webhook_try WHERE number IN (SELECT number FROM webhook_try WHERE began_at <= ? "
        "OR number <= (SELECT max(number) FROM webhook_try) - ? ORDER BY number LIMIT ?) RETURNING 1",
        (now - LOG_KEPT_S, LOG_ROWS, limit),
    )
    return bool(list(gone))


@contextmanager
def open_beside_owner(path: Path, version: int) -> Iterator[Execute]:
    """One transaction on a store's file that a running node may own: SQLite lets one writer in after the other.

    Nothing here may touch `job`, of which the node keeps an index in memory; the outbox is read afresh every time.

    Args: path: the database. version: of the schema that this code knows.
    Raises: StoreError if there is no such file, it cannot be used, or another version wrote it.
    """
    if not path.exists():
        raise StoreError(f"there is no {path}: no server has run with this --data-dir")
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.set_busy_timeout(5000)
            (found,) = next(connection.execute("PRAGMA user_version"))
            if found != version:
                age = "an older" if found < version else "a newer"
                raise StoreError(f"{path} was written by {age} fluxserve: start the server of this version on it first")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            yield lambda query, values: connection.execute(query, values).fetchall()
            connection.execute("COMMIT")
        finally:
            connection.close()
    except apsw.Error as exc:
        raise StoreError(f"cannot use the database {path}: {exc}") from exc


def _delivery(row: tuple[Any, ...]) -> WebhookDelivery:
    job_id, url, tries_made, note, round_, due_at, is_delivered = row
    return WebhookDelivery(job_id, url, tries_made, note, round_, due_at, bool(is_delivered))


def owed(execute: Execute) -> tuple[int, float | None]:
    """How many deliveries are still to be made, and when the first was or is due."""
    for number, first in execute("SELECT count(*), min(due_at) FROM webhook WHERE due_at IS NOT NULL", ()):
        return int(number), first
    return 0, None
