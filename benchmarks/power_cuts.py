"""Power cuts, simulated below SQLite and below the files beside it, at one moment for both.

    python -m benchmarks.power_cuts [--cuts 10000] [--seed 0]

A life stores requests, writes their pictures, ends them, and now and then deletes the oldest; the power fails at a
random write, sync, rename or deletion. The next life must find every acknowledged request and end, a sound database,
and behind every result its picture, whole and as private as it was. Prints one JSON line; exit status 1 if anything
was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.bench.stamp import stamp
from server.files.folder_objects import FolderObjects
from server.jobs.room import SETTLED_S, make_room
from server.jobs.store.job import JobStatus, Outcome
from server.jobs.store.sqlite import SqliteStore
from tests.server.power_cut import PowerCutVFS
from tests.server.power_cut_files import PowerCutFolder
from tests.server.stores import LEASE_S, Clock, new_job

LONGEST = 600
"""Writes, syncs, renames and deletions before the power fails, at most."""


@dataclass
class Promises:
    """What calls had returned when the power failed: ids of requests, and (picture, access) of those that ended."""

    stored: list[str] = field(default_factory=list)
    ended: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)


@dataclass
class Life:
    """One life of a node's store and files until its power fails."""

    store: SqliteStore
    objects: FolderObjects
    vfs: PowerCutVFS
    clock: Clock
    dice: random.Random
    promises: Promises = field(default_factory=Promises)

    def live(self) -> None:
        while not self.vfs.is_cut:
            self.clock.advance(SETTLED_S)
            job = self.store.enqueue(new_job(input={"prompt": "x" * self.dice.randrange(2000)}))
            if not self.vfs.is_cut:
                self.promises.stored.append(job.id)
            self._draw()
            if self.dice.random() < 0.2:
                self._make_room()

    def _draw(self) -> None:
        for job in self.store.claim("w", 1, LEASE_S):
            data = self.dice.randbytes(self.dice.randrange(1, 3000))
            access: Any = self.dice.choice(["allow", "hide"])
            key = self.objects.put(data, "image/png", "png", access=access, tenant="a")
            os.utime(self.objects._folder / key, (self.clock.now, self.clock.now))
            outcome = Outcome(JobStatus.COMPLETED, 200, {"images": [{"file_name": key}]})
            if self.store.finish(job.id, "w", job.epoch, outcome) and not self.vfs.is_cut:
                self.promises.ended[job.id] = (data, access)

    def _make_room(self) -> None:
        """Everything may go that is old enough; what is still there afterwards must be whole."""
        before = {job_id for job_id in self.promises.stored if self.store.get(job_id) is not None}
        self.promises.deleted |= before  # a cut in the middle may leave either
        make_room(self.store, self.objects, 4000)
        if not self.vfs.is_cut:
            self.promises.deleted -= {job_id for job_id in before if self.store.get(job_id) is not None}


def cut_once(folder: Path, seed: int) -> Counter[str]:
    """One life and what the next one finds, counted: promises, and what became of those that were not kept."""
    dice, clock = random.Random(seed), Clock()
    before, after = folder / "before", folder / "after"
    before.mkdir()
    after.mkdir()
    vfs = PowerCutVFS(f"cut-{folder.name}-{seed}", dice.randint(1, LONGEST), dice)
    files = PowerCutFolder(before / "files", vfs.tick, lambda: vfs.is_cut, dice)
    store = None
    promises = Promises()
    try:
        with files.watching():
            store = SqliteStore(before / "jobs.db", clock, vfs=vfs.name)
            life = Life(store, FolderObjects(before / "files", clock), vfs, clock, dice)
            promises = life.promises
            life.live()
    finally:
        if store is not None:
            store.close()
    files.take_image()
    vfs.restore(after)
    files.restore(after / "files")
    return _found(promises, after, clock)


def _found(promises: Promises, folder: Path, clock: Clock) -> Counter[str]:
    found = Counter(cuts=1, promises=len(promises.stored) + len(promises.ended))
    store, objects = SqliteStore(folder / "jobs.db", clock), FolderObjects(folder / "files", clock)
    try:
        verdict = store._writer.run(lambda tx: tx.execute("PRAGMA integrity_check"))
        found["corrupt"] += verdict != [("ok",)]
        for job_id in promises.stored:
            job = store.get(job_id)
            found["lost"] += job is None and job_id not in promises.deleted
            if job is not None and job_id in promises.ended:
                found["lost"] += job.status is not JobStatus.COMPLETED
        for job_id, outcome in _results(store):
            (image,) = outcome["body"]["images"]
            path, known = objects.path(image["file_name"]), objects.stat(image["file_name"])
            found["results"] += 1
            found["missing"] += path is None
            if path is not None and known is not None and job_id in promises.ended:
                found["torn"] += (path.read_bytes(), known.access) != promises.ended[job_id]
    finally:
        store.close()
    return found


def _results(store: SqliteStore) -> list[tuple[str, dict[str, Any]]]:
    rows = store._read("SELECT id, outcome FROM job WHERE status = 'completed'", ())
    return [(job_id, json.loads(outcome)) for job_id, outcome in rows]


def cut_often(cuts: int, seed: int, folder: Path) -> dict[str, Any]:
    """The report on so many cuts."""
    total = Counter(cuts=0, promises=0, results=0, lost=0, corrupt=0, missing=0, torn=0)
    # An interrupt ends the cutting, not the report.
    with suppress(KeyboardInterrupt):
        for number in range(seed, seed + cuts):
            place = folder / f"{number}"
            place.mkdir()
            total.update(cut_once(place, number))
            shutil.rmtree(place)
    return {"benchmark": "power_cuts", "seed": seed} | dict(total)


def is_whole(report: dict[str, Any]) -> bool:
    """Whether every promise was kept."""
    return not any(report[name] for name in ("lost", "corrupt", "missing", "torn"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power_cuts")
    parser.add_argument("--cuts", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = cut_often(arguments.cuts, arguments.seed, Path(folder))
    print(json.dumps(report | {"stamp": stamp()}), flush=True)
    sys.exit(not is_whole(report))


if __name__ == "__main__":
    main()
