"""Connections to PostgreSQL: how they are opened, what they must find there, and which schema they bring up to date."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from server.jobs.store.errors import DiskRefusedError, StoreError

MIGRATIONS = tuple(sorted((Path(__file__).parent / "migrations").glob("*.sql")))
"""Applied in order, each once; the table `fluxserve_schema` has a row for each."""

OLDEST = 15
"""The first major version of PostgreSQL that is served."""

FROZEN_S = 6
"""What a node holds that is frozen, the others have back after so long; whoever lives says so twice meanwhile."""

FLUSH = "SELECT pg_logical_emit_message(true, 'fluxserve', '')"
"""A message to nobody: its commit waits for the disk, and with it for everything before."""

_CLASS = 0x666C7578
"""Our half of the key of an advisory lock; the other is the schema, so that two may share a database."""

_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # Of several hosts in the address the one that takes writes, also after a failover.
    "target_session_attrs": "read-write",
}

Session = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tables are.

    Args: lock: key of the advisory lock of everybody who writes. channel: of notices. talk: of what nodes tell each
        other besides.
    """

    lock: int
    channel: str

    @property
    def talk(self) -> str:
        return f"{self.channel}_talk"


def address_of(conninfo: str, writer: str) -> str:
    """The address with our defaults for what it does not say. Raises: StoreError."""
    try:
        given = conninfo_to_dict(conninfo)
        options = f"{given.pop('options', '')} -c fluxserve.writer={writer}".strip()
        return make_conninfo(**{**_DEFAULTS, "application_name": f"fluxserve {writer}", **given, "options": options})
    except psycopg.Error:  # which repeats the address, and with it the password
        raise StoreError("the address of the store must look like postgresql://user@host/database") from None


def connect(address: str) -> Session:
    """A connection on which every statement is a transaction of its own. Raises: psycopg.Error."""
    connection = psycopg.connect(address, autocommit=True)
    limits = {"idle_session_timeout": 1, "idle_in_transaction_session_timeout": 1, "lock_timeout": 2}
    for name, times in limits.items():
        connection.execute(f"SET {name} = '{times * FROZEN_S}s'")
    return connection


def hang_up(session: Session) -> None:
    """Break the connection, from any thread: who waits for its answer has an error instead."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(session.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def found_at(session: Session) -> Place:
    """Raises: StoreError for a server or a schema that cannot be used."""
    query = (
        "SELECT current_setting('server_version_num')::int, current_schema(), "
        "(SELECT oid::bigint FROM pg_namespace WHERE nspname = current_schema())"
    )
    ((version, schema, oid),) = session.execute(query).fetchall()
    if version // 10_000 < OLDEST:
        raise StoreError(f"PostgreSQL {version // 10_000} is too old: fluxserve needs {OLDEST} or later")
    if schema is None:
        raise StoreError("no schema of the database's search_path exists: create it, or name another in the address")
    return Place(_CLASS << 32 | oid, f"fluxserve_{oid}")


def migrate(session: Session, place: Place) -> None:
    """Bring the schema up to date, one node at a time. Raises: StoreError if a newer version wrote it; psycopg.Error.

    A running node of an older version goes on meanwhile, so a migration adds and never takes away."""
    session.execute("SELECT pg_advisory_lock(%s)", (place.lock,))
    try:
        session.execute("CREATE TABLE IF NOT EXISTS fluxserve_schema (version INTEGER PRIMARY KEY)")
        ((version,),) = session.execute("SELECT coalesce(max(version), 0) FROM fluxserve_schema").fetchall()
        if version > len(MIGRATIONS):
            raise StoreError("the database was written by a newer fluxserve")
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            with session.transaction():
                session.execute(script.read_text())
                session.execute("INSERT INTO fluxserve_schema VALUES (%s)", (number,))
    finally:
        if not session.closed:
            session.execute("SELECT pg_advisory_unlock(%s)", (place.lock,))


def where(address: str) -> str:
    """Host, port and database of an address, without its password."""
    parts = conninfo_to_dict(address)
    host = parts.get("host") or parts.get("hostaddr") or "localhost"
    return f"{host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


@lru_cache(maxsize=512)
def translated(query: str) -> tuple[str, bool]:
    """A query with `?` or `?1` as psycopg writes it, and whether its values go by number."""
    by_number = re.search(r"\?\d", query) is not None
    if by_number:
        return re.sub(r"\?(\d+)", r"%(v\1)s", query), True
    return query.replace("?", "%s"), False


def rows(session: Session, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Run one statement; all its rows. Raises: psycopg.Error."""
    text, by_number = translated(query)
    clean = tuple(
        value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value for value in values
    )
    given = {f"v{number}": value for number, value in enumerate(clean, 1)} if by_number else clean
    cursor = session.execute(text, given or None)
    return cursor.fetchall() if cursor.description is not None else []


def _text(value: Any) -> Any:
    """A text without what PostgreSQL has no text for."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) and "\0" in value else value


def refused(cause: psycopg.Error) -> StoreError:
    """What the caller is told of an error of the database."""
    if isinstance(cause, psycopg.errors.DiskFull):
        return DiskRefusedError(f"the database's disk is full ({first_line(cause)})")
    return StoreError(f"the database refused ({first_line(cause)})")


def first_line(cause: Exception) -> str:
    """Of what psycopg says; the rest repeats the query, or lists every address that was tried."""
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]
