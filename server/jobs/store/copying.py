"""Everything of one store into an empty one, in one transaction: afterwards all of it is there, or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from server.jobs.store import ledger
from server.jobs.store.batches import Transaction
from server.jobs.store.errors import StoreError
from server.jobs.store.job import Job
from server.jobs.store.rows import READ_COLUMNS, from_row, to_row
from server.jobs.store.sql import SqlStore

AT_ONCE = 500
"""Rows that are read and written together."""

Progress = Callable[[str, int, int], None]
"""(table, rows so far, rows in all); a table comes twice, since it is read again when it has been written."""


@dataclass(frozen=True, slots=True)
class Table:
    """What is copied of a table. Args: key: the first of its columns, by which it is read in order."""

    name: str
    key: tuple[str, ...]
    others: tuple[str, ...]
    flags: frozenset[str] = frozenset()
    """Columns that one database calls a number and the other a truth value."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.key + self.others


JOB = Table("job", READ_COLUMNS[:1], READ_COLUMNS[1:])
# Labels and words follow from the job; who is about to deliver a webhook, and whose turn it is, is of the moment.
TABLES = (
    JOB,
    Table("webhook", ("job_seq",), ("due_at", "tries", "note", "round", "is_delivered", "receiver")),
    Table(
        "submission",
        ("job_seq",),
        ("tenant", "endpoint", "name", "digest", "made_at", "is_undelivered"),
        frozenset({"is_undelivered"}),
    ),
    Table("webhook_try", ("number",), ("job_id", "began_at", "duration_s", "http_status", "note", "verdict")),
    Table(
        "usage",
        ("name", "day", "tenant", "endpoint", "key_id", "value"),
        ("requests", "failures", "units", "images", "seconds"),
    ),
    Table("pause", ("kind", "name"), ("since",)),
)


class CopyError(Exception):
    """The copy was given up, and nothing of it is in the target; the sentence says why."""


@dataclass
class Tally:
    """Rows of one table, whatever their order. Args: digest: sum of the SHA-256 of every row, modulo 2^256."""

    rows: int = 0
    digest: int = 0

    def add(self, row: tuple[Any, ...]) -> None:
        text = json.dumps([_plain(value) for value in row])
        self.rows += 1
        self.digest = (self.digest + int.from_bytes(hashlib.sha256(text.encode()).digest())) % 2**256


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied, by table, and verified."""

    tallies: dict[str, Tally] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One for all."""
        texts = [f"{name} {tally.rows} {tally.digest:064x}" for name, tally in sorted(self.tallies.items())]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def copy(source: SqlStore, target: SqlStore, progress: Progress = lambda table, done, of: None) -> Copied:
    """Copy every row, then read all of it again and compare. What the source's nodes left running waits again.

    Raises: StoreError if a node uses one of them, or the target is not empty; CopyError. Then the target is as it was.
    """
    for store, which in ((source, "copied from"), (target, "copied to")):
        living = [node.report.name for node in store.nodes() if not node.is_silent]
        if living:
            raise StoreError(f"nodes are using the store that is {which}, stop them first: {', '.join(living)}")
    source.end_ephemeral()
    source.recover()
    # The source's transaction lasts as long: nobody writes there meanwhile.
    return source.transact(
        lambda reading: target.transact(lambda writing: _copied(reading, target, writing, progress)),
    )


def _copied(reading: Transaction, target: SqlStore, writing: Transaction, progress: Progress) -> Copied:
    for table in TABLES:
        if writing.execute(f"SELECT 1 FROM {table.name} LIMIT 1"):
            raise StoreError("the store to copy to is not empty: name a new file, database or schema")
    copied = Copied()
    for table in TABLES:
        copied.tallies[table.name] = _copy_table(table, reading, target, writing, progress)
    for count_on in target.dialect.count_on:
        writing.execute(count_on)
    for table in TABLES:
        _verify(table, reading, writing, progress)
    return copied


def _copy_table(
    table: Table, reading: Transaction, target: SqlStore, writing: Transaction, progress: Progress
) -> Tally:
    tally, of = Tally(), _count(table, reading)
    derived = target.derived_columns if table is JOB else ()
    columns = (*table.columns, *derived)
    places = ", ".join("?" * len(columns))
    put = f"INSERT INTO {table.name} ({', '.join(columns)}) {target.dialect.as_is} VALUES ({places})"
    for rows in _batches(table, reading):
        for row in rows:
            tally.add(row)
            if table is JOB:
                job = _read(row)
                writing.execute(put, (*row, *to_row(job, derived)))
                ledger.note(writing.execute, job, target.dialect)
            else:
                values = zip(table.columns, row, strict=True)
                writing.execute(put, tuple(bool(value) if name in table.flags else value for name, value in values))
        progress(table.name, tally.rows, of)
    return tally


def _read(row: tuple[Any, ...]) -> Job:
    """Raises: CopyError for a row that was damaged."""
    try:
        return from_row(row)
    except (ValueError, TypeError, KeyError) as exc:
        raise CopyError(f"the request {row[1]} cannot be read ({exc}): delete it first") from exc


def _verify(table: Table, reading: Transaction, writing: Transaction, progress: Progress) -> None:
    """In step with each other, so that neither side is left idle for long."""
    there, here, of = Tally(), Tally(), _count(table, reading)
    targets = _batches(table, writing)
    for rows in _batches(table, reading):
        for row in rows:
            there.add(row)
        for row in next(targets, []):
            here.add(row)
        progress(f"{table.name}, verified", there.rows, of)
    for rows in targets:
        here.rows += len(rows)
    if there != here:
        raise CopyError(f"the table {table.name} is not what it was ({there.rows} rows, {here.rows} copied)")


def _batches(table: Table, reading: Transaction) -> Iterator[list[tuple[Any, ...]]]:
    """All its rows in the order of its key."""
    key, columns = ", ".join(table.key), ", ".join(table.columns)
    where, values = "", ()
    while rows := reading.execute(f"SELECT {columns} FROM {table.name} {where} ORDER BY {key} LIMIT {AT_ONCE}", values):
        yield rows
        where = f"WHERE ({key}) > ({', '.join('?' * len(table.key))})"
        values = rows[-1][: len(table.key)]


def _count(table: Table, reading: Transaction) -> int:
    return int(reading.execute(f"SELECT count(*) FROM {table.name}")[0][0])


def _plain(value: Any) -> Any:
    """The same for both databases: PostgreSQL's text holds no NUL."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    return int(value) if isinstance(value, bool) else value
