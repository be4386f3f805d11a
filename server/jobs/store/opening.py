"""Opening a store's file: one owner process, private to it, the schema up to date; and a look at it from beside."""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path

import apsw

from server.jobs.store.errors import StoreError

MIGRATIONS = tuple(sorted((Path(__file__).parent / "migrations").glob("*.sql")))
"""Applied in order, each once; how many have been is the database's `user_version`."""


def become_owner(path: Path) -> int:
    """Hold the lock beside the database for the life of this process; the kernel frees it, however that ends.

    Raises: StoreError if another process holds it. OSError."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise StoreError(f"another fluxserve is using the data directory {path.parent}") from exc
    # Prompts are private: SQLite would make the file readable to all, and gives its log the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return descriptor


def connect(path: Path, vfs: str | None) -> apsw.Connection:
    """The connection that writes."""
    connection = apsw.Connection(str(path), vfs=vfs)
    connection.set_busy_timeout(5000)
    _keep_log_files(connection)
    # The writer chooses the synchronous level of every commit; F_FULLFSYNC matters on macOS only.
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _keep_log_files(connection: apsw.Connection) -> None:
    """Leave the files beside the database at the end: a start on a full disk could not make them again.

    The log is emptied then, and here because there is a limit: were it left as it is, a backup that is put in the
    database's place would be overwritten from it."""
    connection.execute("PRAGMA journal_size_limit = 67108864")
    keep = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))


def migrate(connection: apsw.Connection) -> None:
    """Bring the schema up to date. Raises: StoreError if a newer version wrote it."""
    (version,) = next(connection.execute("PRAGMA user_version"))
    if version > len(MIGRATIONS):
        raise StoreError("the data directory was written by a newer fluxserve")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        with connection:
            connection.execute(script.read_text())
            connection.execute(f"PRAGMA user_version = {number}")


def why_unusable(path: Path) -> str | None:
    """What is wrong with a store's file, in one sentence; None for a sound one, or none at all.

    Reads it whole, beside a running owner too."""
    if not path.exists():
        return None
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            (version,) = next(connection.execute("PRAGMA user_version"))
            (verdict,) = next(connection.execute("PRAGMA quick_check(1)"))
        finally:
            connection.close()
    except apsw.Error as exc:
        return f"{path} cannot be read as a database: {exc}"
    if version > len(MIGRATIONS):
        return f"{path} was written by a newer fluxserve"
    return None if verdict == "ok" else f"{path} is damaged: {verdict}"
