"""What a store that several nodes share costs beside one in a file: submits, polls, claims, ends; few waiting and many.

    python -m benchmarks.postgres [--address postgresql://...] [--jobs N] [--waiting N]

Without an address a server is started in a temporary folder and waits for the disk as a real one does. Everything is
made in a schema of its own, which is dropped at the end. One JSON line comes last.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from benchmarks.store import LEASE_S, claims_and_ends, fsync_cost, reads, submits, summary, timed_ms
from server.jobs.store.job import NewJob
from server.jobs.store.postgres.store import PostgresStore
from server.jobs.store.sql import SqlStore
from server.jobs.store.sqlite import SqliteStore
from tests.server.postgres import PostgresServer, programs

SCHEMA = "fluxserve_benchmark"
CLAIMS = ((1, 1), (8, 1), (8, 4))
"""(threads that claim at once, jobs a claim); a dispatcher claims up to four for an idle worker."""


@contextmanager
def schema_at(address: str | None) -> Iterator[str]:
    """The address of an empty schema; on a server of its own if none is given."""
    server = None
    if address is None:
        if (found := programs()) is None:
            raise SystemExit("no PostgreSQL on this machine: install Debian's postgresql, or give --address")
        server = PostgresServer(found, fsync=True)
        address = server.address
    try:
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {SCHEMA}".encode())
            try:
                yield make_conninfo(address, options=f"-c search_path={SCHEMA}")
            finally:
                connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE".encode())
    finally:
        if server is not None:
            server.remove()


def both(store: SqlStore, jobs: int) -> dict[str, Any]:
    """What is measured of either store, in the same words."""
    return {
        "submit, 1 at once": submits(store, jobs, 1),
        "submit, 16 at once": submits(store, jobs, 16),
        "status": reads(store, "1-0"),
        **claims_and_ends(store, jobs),
    }


def fill(address: str, waiting: int) -> None:
    """So many jobs wait in the end: copies of one that was submitted."""
    with closing(PostgresStore(address)) as store:
        store.enqueue(NewJob("first", "fal-ai/flux/dev", {"prompt": "a"}, {"model": "m", "prompt": "a", "seed": 1}))
    with psycopg.connect(address, autocommit=True) as connection:
        listed = (
            "SELECT string_agg(column_name, ', ') FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = 'job' AND column_name NOT IN ('seq', 'id')"
        )
        ((columns,),) = connection.execute(listed).fetchall()
        copy = (
            f"INSERT INTO job (id, {columns}) SELECT 'copy-' || number, {columns} FROM job, "
            f"generate_series(1, {waiting - 1}) AS number WHERE id = 'first'"
        )
        connection.execute("SELECT set_config('fluxserve.writer', 'benchmark', false)")
        connection.execute(copy.encode())
        connection.execute("ANALYZE job")


def claims(address: str, waiting: int, number: int, threads: int, at_once: int) -> dict[str, float]:
    """So many claims while so many wait: claimed jobs a second, and latency of a claim."""
    fill(address, waiting)
    with closing(PostgresStore(address)) as store:

        def claim(turn: int) -> float:
            return timed_ms(lambda: store.claim(f"owner-{turn % threads}", at_once, LEASE_S))

        claim(0)
        started = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            latencies = list(pool.map(claim, range(number)))
        figure = {"jobs_per_s": number * at_once / (time.perf_counter() - started), **summary(latencies)}
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("TRUNCATE job CASCADE")
    return figure


def measure(folder: Path, address: str, jobs: int, waiting: int) -> dict[str, Any]:
    """All figures by name, the disk's own cost at the beginning and at the end."""
    figures: dict[str, Any] = {"fsync before": fsync_cost(folder)}
    with closing(SqliteStore(folder / "jobs.db")) as file:
        figures["sqlite"] = both(file, jobs)
    with closing(PostgresStore(address)) as shared:
        figures["postgres"] = both(shared, jobs)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("TRUNCATE job CASCADE")
    for number in (1000, waiting):
        for threads, at_once in CLAIMS:
            name = f"claims of {at_once}, {number} waiting, {threads} at once"
            figures[name] = claims(address, number, min(jobs, number // at_once - 1), threads, at_once)
    figures["fsync after"] = fsync_cost(folder)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--address", help="of a database to measure; default: a server in the temporary folder")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--waiting", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, schema_at(arguments.address) as address:
        print(json.dumps(measure(Path(folder), address, arguments.jobs, arguments.waiting)))


if __name__ == "__main__":
    main()
