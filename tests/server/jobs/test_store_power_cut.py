"""Power cuts, simulated below SQLite: what was promised is there afterwards, and the file is whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest

from server.jobs.store.job import JobStatus
from server.jobs.store.sqlite import SqliteStore
from server.jobs.store.writer import GroupCommit
from tests.server.power_cut import PowerCutVFS
from tests.server.stores import DONE, LEASE_S, new_job


@dataclass
class Promises:
    """What calls had returned when the power failed."""

    submitted: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)


def work_until_cut(store: SqliteStore, vfs: PowerCutVFS, dice: random.Random) -> Promises:
    promises = Promises()
    while not vfs.is_cut:
        if dice.random() < 0.5:
            job = store.enqueue(new_job(input={"prompt": "x" * dice.randrange(3000)}))
            _note(vfs, promises.submitted, job.id)
        for job in store.claim("w1", 1, LEASE_S):
            if store.finish(job.id, "w1", job.epoch, DONE):
                _note(vfs, promises.ended, job.id)
    return promises


def _note(vfs: PowerCutVFS, promises: list[str], job_id: str) -> None:
    if not vfs.is_cut:
        promises.append(job_id)


def cut_once(folder: Path, seed: int) -> tuple[Promises, SqliteStore]:
    """One life that ends in a power cut, and the store as the next life finds it."""
    dice = random.Random(seed)
    before, after = folder / f"{seed}-before", folder / f"{seed}-after"
    before.mkdir()
    after.mkdir()
    vfs = PowerCutVFS(f"cut-{folder.name}-{seed}", dice.randint(1, 900), dice)
    store: SqliteStore | None = None
    promises = Promises()
    try:
        store = SqliteStore(before / "jobs.db", vfs=vfs.name)
        promises = work_until_cut(store, vfs, dice)
    finally:
        if store is not None:
            store.close()
    vfs.restore(after)
    return promises, SqliteStore(after / "jobs.db")


def lost(promises: Promises, store: SqliteStore) -> int:
    """Promises that the next life does not find kept."""
    missing = sum(store.get(job_id) is None for job_id in promises.submitted)
    for job_id in promises.ended:
        job = store.get(job_id)
        missing += job is None or job.status is not JobStatus.COMPLETED
    return missing


def check_integrity(store: SqliteStore) -> None:
    assert store._writer.run(lambda tx: tx.connection.execute("PRAGMA integrity_check").fetchall()) == [("ok",)]


def test_no_promise_is_lost_and_the_database_is_whole(tmp_path: Path) -> None:
    kept = 0
    for seed in range(40):
        promises, store = cut_once(tmp_path, seed)
        check_integrity(store)
        assert lost(promises, store) == 0, f"seed {seed}"
        kept += len(promises.submitted) + len(promises.ended)
        running = store.counts()[JobStatus.RUNNING]
        assert len(store.recover()) == running
        store.close()
    assert kept > 500


def test_without_a_sync_a_promise_the_same_cuts_lose_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the simulation can find a loss at all: nothing is a promise here."""
    run = GroupCommit.run

    def careless(self: GroupCommit, operation: Callable[..., Any], *_: Any, **__: Any) -> Any:
        return run(self, operation, is_promise=False)

    monkeypatch.setattr(GroupCommit, "run", careless)
    losses = 0
    for seed in range(10):
        promises, store = cut_once(tmp_path, seed)
        check_integrity(store)
        losses += lost(promises, store)
        store.close()
    assert losses > 10


def test_the_file_layer_is_the_one_in_use(tmp_path: Path) -> None:
    vfs = PowerCutVFS("in-use", 10**9, random.Random(0))
    store = SqliteStore(tmp_path / "jobs.db", vfs=vfs.name)
    store.enqueue(new_job())
    assert {Path(path).suffix for path in vfs.disks} >= {".db", ".db-wal"}
    assert "in-use" in apsw.vfs_names()
    store.close()
