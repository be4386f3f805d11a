"""What `fluxserve doctor` finds of the database that several nodes share: can it be reached, used, and trusted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from models.extras import how_to_install
from server.cli.finding import Finding
from server.settings import Settings

if TYPE_CHECKING:
    from server.jobs.store.postgres.session import Session

SUBJECT = "database"
FAR_MS = 20.0
"""A round trip longer than this is felt in every submit: it takes several."""
SKEW_S = 5.0
CONNECTIONS = 10
"""That one node may open, at most."""


def shared_store(settings: Settings) -> list[Finding]:
    """Nothing without `--store`."""
    if settings.store is None:
        return []
    try:
        import psycopg

        from server.jobs.store.postgres import session
    except ImportError:
        return [Finding(SUBJECT, "broken", "its driver is not installed", how_to_install("postgres"))]
    from server.jobs.store.errors import StoreError

    try:
        address = session.address_of(settings.store, "doctor")
        with session.connect(address) as connection:
            return _looked(connection, f"{session.where(address)}", session.OLDEST, len(session.MIGRATIONS))
    except StoreError as exc:
        return [Finding(SUBJECT, "broken", str(exc), "see --store in docs/configuration.md")]
    except psycopg.Error as exc:
        why = session.first_line(exc)
        advice = "does it run, take writes (a standby does not), and let this machine and user in (pg_hba.conf)?"
        return [Finding(SUBJECT, "broken", f"{session.where(address)} cannot be used: {why}", advice)]


def _looked(connection: Session, where: str, oldest: int, schema: int) -> list[Finding]:
    """Raises: psycopg.Error."""
    version = int(_one(connection, "SELECT current_setting('server_version_num')"))
    if version // 10_000 < oldest:
        return [
            Finding(SUBJECT, "broken", f"{where} is PostgreSQL {version // 10_000}", f"it must be {oldest} or later")
        ]
    return [
        _distance(connection, where, version),
        _clock(connection),
        _permission(connection),
        _tables(connection, schema),
        _durability(connection),
        _room(connection),
    ]


def _distance(connection: Session, where: str, version: int) -> Finding:
    trips = []
    for _ in range(5):
        began = time.perf_counter()
        _one(connection, "SELECT 1")
        trips.append((time.perf_counter() - began) * 1e3)
    detail = f"{where} is PostgreSQL {version // 10_000}.{version % 10_000}, a question takes {min(trips):.1f} ms"
    if min(trips) > FAR_MS:
        return Finding(SUBJECT, "warning", detail, "every submit asks several: put nodes and database closer together")
    return Finding(SUBJECT, "ok", detail)


def _clock(connection: Session) -> Finding:
    before = time.time()
    there = float(_one(connection, "SELECT extract(epoch FROM clock_timestamp())"))
    ahead_s = (before + time.time()) / 2 - there
    detail = f"this machine's clock is {abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} the database's"
    if abs(ahead_s) > SKEW_S:
        advice = "leases go by the database's, but logs, tokens and signed addresses by this machine's: set it by NTP"
        return Finding("clock", "warning", detail, advice)
    return Finding("clock", "ok", detail)


def _permission(connection: Session) -> Finding:
    schema = _one(connection, "SELECT current_schema()")
    user = _one(connection, "SELECT current_user")
    if schema is None:
        advice = "create the schema, or name another with ?options=-csearch_path%3DNAME"
        return Finding("permission", "broken", f"no schema of {user}'s search_path exists", advice)
    if not _one(connection, "SELECT has_schema_privilege(current_schema(), 'CREATE')"):
        return Finding(
            "permission",
            "broken",
            f"{user} may not make tables in the schema {schema}",
            f'GRANT CREATE, USAGE ON SCHEMA "{schema}" TO "{user}"',
        )
    return Finding("permission", "ok", f"{user} may make tables in the schema {schema}")


def _tables(connection: Session, known: int) -> Finding:
    if _one(connection, "SELECT to_regclass('fluxserve_schema')") is None:
        return Finding("tables", "ok", "made at the first start")
    version = int(_one(connection, "SELECT coalesce(max(version), 0) FROM fluxserve_schema"))
    if version > known:
        return Finding("tables", "broken", "a newer fluxserve has made them", "update this one")
    nodes = int(_one(connection, "SELECT count(*) FROM node")) if version == known else 0
    state = f"as this version needs them, {nodes} nodes" if version == known else "older; the next start changes them"
    return Finding("tables", "ok", state)


def _durability(connection: Session) -> Finding:
    for name in ("fsync", "full_page_writes"):
        if _one(connection, f"SELECT current_setting('{name}')") == "off":
            detail = f"{name} is off: a power cut may damage what was acknowledged"
            return Finding("durability", "warning", detail, "turn it on in postgresql.conf")
    return Finding("durability", "ok", "what is committed outlives a power cut of the database")


def _room(connection: Session) -> Finding:
    most = int(_one(connection, "SELECT current_setting('max_connections')"))
    used = int(_one(connection, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"))
    detail = f"{used} of {most} connections are used, a node opens up to {CONNECTIONS}"
    if most - used < CONNECTIONS:
        return Finding("connections", "warning", detail, "raise max_connections")
    return Finding("connections", "ok", detail)


def _one(connection: Session, query: str) -> Any:
    ((value,),) = connection.execute(query.encode()).fetchall()
    return value
