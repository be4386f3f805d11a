"""Which store a setting means: the file in the data folder, or a database that several nodes share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.extras import how_to_install
from server.jobs.store.base import Store
from server.jobs.store.errors import StoreError
from server.jobs.store.sqlite import SqliteStore


def open_store(address: str | None, data_dir: Path, clock: Callable[[], float] | None = None) -> Store:
    """Args: address: of PostgreSQL; None for the file. clock: of the file alone; a database has its own.

    Raises: StoreError with one sentence for the operator.
    """
    if address is None:
        return SqliteStore(data_dir / "jobs.db", clock)
    try:
        # Only here: whoever does not ask for it need not have its driver, nor wait for it.
        from server.jobs.store.postgres.store import PostgresStore
    except ImportError as exc:
        raise StoreError(f"--store postgresql://... needs a package: {how_to_install('postgres')}") from exc
    return PostgresStore(address)
