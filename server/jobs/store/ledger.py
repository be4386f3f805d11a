"""Usage and search in SQL. Functions take `execute`, so that they run inside the store's transactions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from server.jobs.store.accounts import DAY_S, USAGE_KEPT_DAYS, Ended, Search, Usage, UsageQuestion, entries, searchable
from server.jobs.store.dialect import Dialect
from server.jobs.store.job import Job

Execute = Callable[[str, tuple[Any, ...]], Iterable[tuple[Any, ...]]]

_COUNTS = ("requests", "failures", "units", "images", "seconds")
_USAGE_COLUMNS = ("day", "tenant", "endpoint", "key_id", "value", *_COUNTS)
_KEY = "name, day, tenant, endpoint, key_id, value"
_ADDED = ", ".join(f"{column} = usage.{column} + excluded.{column}" for column in _COUNTS)
_INSERT_USAGE = (
    f"INSERT INTO usage (name, {', '.join(_USAGE_COLUMNS)}) VALUES (?{', ?' * len(_USAGE_COLUMNS)}) "
    f"ON CONFLICT ({_KEY}) DO UPDATE SET {_ADDED}"
)


def note(execute: Execute, job: Job, dialect: Dialect) -> None:
    """Note what a job that was just stored is found by: its labels and the words of its prompt."""
    if prompt := searchable(job):
        execute(dialect.note_words, (job.seq, dialect.words(prompt)))
    for name, value in job.tags.items():
        execute("INSERT INTO job_tag (name, value, job_seq) VALUES (?, ?, ?)", (name, value, job.seq))


def count(execute: Execute, job: Job) -> None:
    """Add an ended job to usage."""
    for name, usage in entries(job):
        execute(_INSERT_USAGE, (name, *(getattr(usage, column) for column in _USAGE_COLUMNS)))


def usage(execute: Execute, question: UsageQuestion, limit: int, offset: int, dialect: Dialect) -> list[Usage]:
    """A page of usage, in the order of its key."""
    where = _Where()
    where.add("name = ?", question.name)
    where.add("day BETWEEN ? AND ?", *question.days)
    where.equal("tenant", question.tenant)
    where.equal("value", question.value)
    where.any_of("endpoint", question.endpoints)
    where.any_of("key_id", question.keys)
    what = "tenant, endpoint, key_id, value"
    if question.by_day:
        query = f"SELECT day, {what}, {', '.join(_COUNTS)} FROM usage {where} ORDER BY day, {what}"
    else:
        # PostgreSQL's sums of whole numbers are decimals.
        sums = ", ".join(f"CAST(sum({column}) AS BIGINT)" for column in _COUNTS[:-1]) + f", sum({_COUNTS[-1]})"
        # Not by the key, which begins with the day: every line would be read before the first sum is known.
        query = f"SELECT NULL, {what}, {sums} FROM usage {dialect.by_order} {where} GROUP BY {what} ORDER BY {what}"
    return [Usage(*row) for row in execute(f"{query} LIMIT ? OFFSET ?", (*where.values, limit, offset))]


def units_of_key(execute: Execute, key_id: str, first_day: int) -> dict[str, int]:
    """Megapixels by endpoint that a key has used since that day."""
    query = "SELECT endpoint, sum(units) FROM usage WHERE name = '' AND key_id = ? AND day >= ? GROUP BY endpoint"
    return {endpoint: int(units) for endpoint, units in execute(query, (key_id, first_day))}


def found(search: Search, limit: int, dialect: Dialect) -> tuple[str, tuple[Any, ...]]:
    """The query for `seq` of what a search finds, the newest first."""
    where = _Where()
    where.equal("tenant", search.tenant)
    if search.before is not None:
        where.add("seq < ?", search.before)
    for name, value in search.tags:
        where.add("seq IN (SELECT job_seq FROM job_tag WHERE name = ? AND value = ?)", name, value)
    where.any_of("status", search.statuses)
    where.any_of("endpoint", search.endpoints)
    where.any_of("key_id", search.keys)
    where.any_of("id", search.ids)
    where.any_of("model", search.models)
    if question := dialect.question(search.text):
        where.add(f"seq IN ({dialect.has_words})", question)
    if search.since > 0:
        where.add("created_at >= ?", search.since)
    if search.until < math.inf:
        where.add("created_at < ?", search.until)
    # Without a tenant the index still holds all that is asked for: it is read whole, which rows with pictures are not.
    table = "job" if search.ids else f"job {dialect.by_search}"
    return f"SELECT seq FROM {table} {where} ORDER BY seq DESC LIMIT ?", (*where.values, limit)


def ended(execute: Execute, search: Search, limit: int, dialect: Dialect) -> list[Ended]:
    """How what a search finds went, as far as it has ended."""
    seqs, values = found(search, limit, dialect)
    status = f"CASE WHEN status = 'completed' THEN 200 ELSE {dialect.http_status} END"
    times = "started_at - created_at, finished_at - started_at"
    query = f"SELECT endpoint, created_at, {status}, {times} FROM job WHERE seq IN ({seqs}) AND finished_at IS NOT NULL"
    return [Ended(*row) for row in execute(f"{query} ORDER BY seq DESC", values)]


def sweep(execute: Execute, now: float, limit: int) -> bool:
    """Forget usage that is too old, at most so many rows; whether there was any."""
    last = int(now // DAY_S) - USAGE_KEPT_DAYS
    gone = execute(
        f"DELETE FROM usage WHERE ({_KEY}) IN (SELECT {_KEY} FROM usage WHERE day < ? LIMIT ?) RETURNING 1",
        (last, limit),
    )
    return bool(list(gone))


class _Where:
    """The conditions of a query and their values."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: tuple[Any, ...] = ()

    def add(self, condition: str, *values: Any) -> None:
        self._conditions.append(condition)
        self.values += values

    def equal(self, column: str, value: str | None) -> None:
        if value is not None:
            self.add(f"{column} = ?", value)

    def any_of(self, column: str, values: Sequence[str]) -> None:
        if values:
            self.add(f"{column} IN ({', '.join('?' * len(values))})", *map(str, values))

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self._conditions)}" if self._conditions else ""
