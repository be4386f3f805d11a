"""The table of submits, by which a repeated one is known and gets the id of the first.

A submit with an idempotency key is known by it for a day. Any other is known by its digest, for two minutes and only
if its answer could not be delivered: the connection broke, or the node died before it noted that it had answered.
Functions take `execute`, so that they run inside the store's transactions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from server.jobs.store.base import NAMED_KEPT_S, UNDELIVERED_KEPT_S
from server.jobs.store.errors import RepeatMismatchError
from server.jobs.store.job import NewJob

Execute = Callable[[str, tuple[Any, ...]], Iterable[tuple[Any, ...]]]


def earlier(execute: Execute, new: NewJob, now: float) -> int | None:
    """`seq` of the job that this submit repeats. Raises: RepeatMismatchError if its key stands for another body."""
    if new.repeat is None:
        return None
    if new.repeat.name is None:
        query = (
            "SELECT job_seq, digest FROM submission WHERE digest = ? AND tenant = ? AND endpoint = ? AND made_at > ? "
            "AND is_undelivered AND name IS NULL ORDER BY job_seq DESC LIMIT 1"
        )
        values: tuple[Any, ...] = (new.repeat.digest, new.tenant, new.endpoint, now - UNDELIVERED_KEPT_S)
    else:
        query = (
            "SELECT job_seq, digest FROM submission WHERE name = ? AND tenant = ? AND endpoint = ? AND made_at > ? "
            "ORDER BY job_seq DESC LIMIT 1"
        )
        values = (new.repeat.name, new.tenant, new.endpoint, now - NAMED_KEPT_S)
    for seq, digest in execute(query, values):
        if digest != new.repeat.digest:
            raise RepeatMismatchError
        return int(seq)
    return None


def note(execute: Execute, job_seq: int, new: NewJob, now: float) -> None:
    """This submit is stored; its answer is on its way."""
    if new.repeat is not None:
        execute(
            "INSERT INTO submission (job_seq, tenant, endpoint, name, digest, made_at) VALUES (?, ?, ?, ?, ?, ?)",
            (job_seq, new.tenant, new.endpoint, new.repeat.name, new.repeat.digest, now),
        )


def note_answer(execute: Execute, job_id: str, is_delivered: bool) -> None:
    """Its answer was written to the connection, or could not be."""
    this = "name IS NULL AND job_seq = (SELECT seq FROM job WHERE id = ?)"
    change = "DELETE FROM submission" if is_delivered else "UPDATE submission SET is_undelivered = TRUE"
    execute(f"{change} WHERE {this}", (job_id,))


def doubt_all(execute: Execute) -> None:
    """At a start: answers that the node of before has not noted may never have arrived."""
    execute("UPDATE submission SET is_undelivered = TRUE WHERE name IS NULL", ())


def sweep(execute: Execute, now: float, limit: int) -> bool:
    """Forget submits that are too old to be repeated, at most so many; whether there were any."""
    gone = execute(
        "DELETE FROM submission WHERE job_seq IN (SELECT job_seq FROM submission WHERE made_at <= ?1 - ?2 "
        "AND (name IS NULL OR made_at <= ?1 - ?3) ORDER BY made_at LIMIT ?4) RETURNING 1",
        (now, UNDELIVERED_KEPT_S, NAMED_KEPT_S, limit),
    )
    return bool(list(gone))
