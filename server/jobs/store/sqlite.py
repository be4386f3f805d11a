"""The default store: one SQLite file, one owner process, one writer thread with group commit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import apsw

from server.jobs.store.base import StoreListener
from server.jobs.store.clock import SteadyClock
from server.jobs.store.dialect import Dialect
from server.jobs.store.errors import StoreError
from server.jobs.store.job import JobStatus
from server.jobs.store.nodes import NodeBook, NodeReport, SeenNode
from server.jobs.store.opening import become_owner, connect, migrate
from server.jobs.store.reading import Reader
from server.jobs.store.rows import READ_COLUMNS, from_row
from server.jobs.store.sql import UNFINISHED, SqlStore
from server.jobs.store.words import MOST_WORDS
from server.jobs.store.writer import GroupCommit

_SELECT = f"SELECT {', '.join(READ_COLUMNS)} FROM job"

_SIZES = (
    "(SELECT json_group_array(json_object('width', value ->> '$.width', 'height', value ->> '$.height')) "
    "FROM json_each(outcome, '$.body.images'))"
)

# Steps from one receiver to the next through the index: what one is owed, however much, is not walked through.
_IN_TURN = """
WITH RECURSIVE
    receiver (name) AS (
        SELECT min(receiver) FROM webhook WHERE due_at IS NOT NULL
        UNION ALL
        SELECT (SELECT min(receiver) FROM webhook WHERE due_at IS NOT NULL AND receiver > name)
        FROM receiver WHERE name IS NOT NULL
    ),
    due AS (
        SELECT first.job_seq, row_number() OVER (PARTITION BY receiver.name ORDER BY first.due_at) AS place
        FROM receiver JOIN webhook AS first ON first.job_seq IN (
            SELECT job_seq FROM webhook WHERE receiver = receiver.name AND due_at <= ?1 ORDER BY due_at LIMIT ?3
        )
    )
"""


def _text(prompt: str) -> str:
    """A half of a surrogate pair, which JSON may hold, is no text for SQLite."""
    return prompt.encode("utf-8", "replace").decode()


def _question(text: str) -> str:
    """FTS5's question for the first of these words, or beginnings of words; nothing in them is an operator."""
    quoted = _text(text).replace("\0", " ").replace('"', '""').split()
    return " ".join(f'"{word}"*' for word in list(dict.fromkeys(quoted))[:MOST_WORDS])


class SqliteStore(SqlStore):
    """`Store` in one file. See `server.jobs.store.base.Store` for what every method promises.

    Writes go through `GroupCommit`; reads use other connections, which a write-ahead log never blocks.

    Args: path: the database; its folder must exist. clock: Unix seconds, the only clock for leases and deadlines.
        vfs: SQLite's name of the file layer to write through; tests cut the power in one.
    Raises: StoreError if another process has it open, or the file is damaged or from a newer version.
    """

    _claims_are_promises = False
    _dialect = Dialect(
        contains="instr(input, ?) > 0",
        brief=f"json_set(outcome, '$.body', json_object('images', json({_SIZES})))",
        http_status="json_extract(outcome, '$.http_status')",
        by_search="INDEXED BY job_search",
        by_order="INDEXED BY usage_in_order",
        has_words="SELECT rowid FROM job_text WHERE job_text MATCH ?",
        question=_question,
        note_words="INSERT INTO job_text (rowid, prompt) VALUES (?, ?)",
        words=_text,
        due_in_turn=_IN_TURN,
    )
    _read: Reader
    _search: Reader

    def __init__(self, path: Path, clock: Callable[[], float] | None = None, vfs: str | None = None) -> None:
        super().__init__()
        self._clock = clock or SteadyClock()
        self._nodes = NodeBook(self._clock)
        self._lock_file = become_owner(path)
        self._files = (path, path.with_name(path.name + "-wal"))
        try:
            connection = connect(path, vfs)
            migrate(connection)
            self._fill_line(connection)
            self._read = Reader(path)
            self._search = Reader(path)
        except apsw.Error as exc:
            os.close(self._lock_file)
            raise StoreError(f"cannot open the database {path}: {exc}") from exc
        except StoreError:
            os.close(self._lock_file)
            raise
        self._writer = GroupCommit(connection, self._note_changes, self._clock)

    def now(self) -> float:
        return self._clock()

    def note_node(self, report: NodeReport) -> frozenset[str]:
        return self._nodes.note(report)

    def forget_node(self, name: str) -> None:
        self._nodes.forget(name)

    def nodes(self) -> list[SeenNode]:
        return self._nodes.all()

    def rest(self, name: str, is_wanted: bool) -> bool:
        return self._nodes.rest(name, is_wanted)

    def listen(self, listener: StoreListener) -> None:
        """Nobody else changes it."""

    @property
    def channel(self) -> None:
        return None

    @property
    def problem(self) -> str | None:
        missing = next((file for file in self._files if not file.exists()), None)
        return None if missing is None else f"{missing} was removed while in use: restart the server"

    def close(self) -> None:
        self._search.close()
        if not self._read.close():
            return
        self._writer.close()
        os.close(self._lock_file)

    def _fill_line(self, connection: apsw.Connection) -> None:
        for status, number in connection.execute("SELECT status, count(*) FROM job GROUP BY status"):
            if JobStatus(status).is_finished:
                self._line.count(JobStatus(status), number)
        for row in connection.execute(" UNION ALL ".join(f"{_SELECT} {where}" for where in UNFINISHED)):
            try:
                job = from_row(row)
                self._line.change(None, job)
                self._pending.change(None, job)
            except (ValueError, TypeError):
                self._damaged.append(row[0])
