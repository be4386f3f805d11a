"""What the operator may do to the queue, held by every store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.jobs.store.accounts import PauseKind
from server.jobs.store.base import Store
from server.jobs.store.sqlite import SqliteStore
from tests.server.stores import LEASE_S, OPEN_STORE, Clock, new_job, place


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(OPEN_STORE))
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


def claimed(store: Store) -> list[str]:
    return [job.id for job in store.claim("w1", 10, LEASE_S)]


@pytest.mark.parametrize(
    ("kind", "held", "free"),
    [
        ("model", {"params": {"model": "held"}}, {"params": {"model": "free"}}),
        ("key", {"key_id": "held"}, {"key_id": "free"}),
    ],
)
def test_what_is_paused_waits_and_keeps_its_place(
    store: Store, kind: PauseKind, held: dict[str, Any], free: dict[str, Any]
) -> None:
    first, second, third = (store.enqueue(new_job(**about)).id for about in (held, free, held))
    store.pause(kind, "held")
    store.pause(kind, "held")
    assert [(pause.kind, pause.name) for pause in store.pauses()] == [(kind, "held")]
    assert claimed(store) == [second]
    assert claimed(store) == []
    assert store.resume(kind, "held") is True
    assert store.resume(kind, "held") is False
    assert claimed(store) == [first, third]


def test_a_pause_outlives_the_node(tmp_path: Path, clock: Clock) -> None:
    store = SqliteStore(tmp_path / "jobs.db", clock)
    store.pause("model", "flux-shapes")
    store.enqueue(new_job())
    store.close()
    store = SqliteStore(tmp_path / "jobs.db", clock)
    assert claimed(store) == []
    assert [pause.since for pause in store.pauses()] == [clock.now]
    store.close()


def test_a_request_is_moved_to_the_front_of_its_own_line(store: Store, clock: Clock) -> None:
    ids = [store.enqueue(new_job(tenant="ann", priority=int(number == 2))).id for number in range(3)]
    other = store.enqueue(new_job(tenant="bob")).id
    clock.advance(1.0)
    moved = store.prioritise(ids[2])
    assert moved is not None
    assert moved.queue_rank < clock.now, "a low-priority one, too"
    assert [place(store, job_id) for job_id in ids] == [2, 3, 0]
    assert store.prioritise(ids[1]) is not None
    assert set(claimed(store)[:2]) == {ids[1], other}, "keys still take turns"


def test_a_moved_request_keeps_its_place_when_its_worker_dies_and_over_a_restart(tmp_path: Path, clock: Clock) -> None:
    store = SqliteStore(tmp_path / "jobs.db", clock)
    first, second = store.enqueue(new_job()).id, store.enqueue(new_job()).id
    store.prioritise(second)
    (job,) = store.claim("w1", 1, LEASE_S)
    assert job.id == second
    store.release("w1", died=False)
    store.close()
    store = SqliteStore(tmp_path / "jobs.db", clock)
    assert (place(store, second), place(store, first)) == (0, 1)
    assert claimed(store) == [second, first]
    store.close()


def test_only_what_waits_is_moved(store: Store) -> None:
    job_id = store.enqueue(new_job()).id
    claimed(store)
    assert store.prioritise(job_id) is None
    assert store.prioritise("unknown") is None
