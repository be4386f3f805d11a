"""Keeping within so many bytes: the oldest go, results before their pictures, and nothing that is still needed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.files.folder_objects import FolderObjects
from server.jobs import upkeep
from server.jobs.room import SETTLED_S, make_room
from server.jobs.store.base import Store
from server.jobs.store.job import JobStatus, Outcome
from server.node import Node
from server.settings import Settings
from tests.server.stores import LEASE_S, OPEN_STORE, Clock, new_job

SIZE = 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def objects(tmp_path: Path, clock: Clock) -> FolderObjects:
    return FolderObjects(tmp_path / "files", clock)


@pytest.fixture(params=sorted(OPEN_STORE))
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


def put(objects: FolderObjects, clock: Clock, age_s: float = 0.0) -> str:
    key = objects.put(bytes(SIZE), "image/png", "png")
    path = objects.path(key)
    assert path is not None
    os.utime(path, (clock.now - age_s, clock.now - age_s))
    return key


def draw(store: Store, objects: FolderObjects, clock: Clock) -> tuple[str, str]:
    """A request that ends now with a picture: its id and the picture's key."""
    store.enqueue(new_job())
    (job,) = store.claim("w", 1, LEASE_S)
    key = put(objects, clock)
    body = {"images": [{"url": f"/files/{key}", "file_name": key}]}
    assert store.finish(job.id, "w", job.epoch, Outcome(JobStatus.COMPLETED, 200, body))
    return job.id, key


def test_the_oldest_requests_go_with_their_pictures(store: Store, objects: FolderObjects, clock: Clock) -> None:
    drawn = []
    for _ in range(6):
        drawn.append(draw(store, objects, clock))
        clock.advance(2 * SETTLED_S)
    assert make_room(store, objects, 4 * SIZE) == (2, 2)
    for number, (job_id, key) in enumerate(drawn):
        assert (store.get(job_id) is not None, objects.path(key) is not None) == (number >= 2, number >= 2)
    assert make_room(store, objects, 4 * SIZE) == (0, 0)
    assert objects.total_bytes == 4 * SIZE


def test_no_result_that_is_left_names_a_missing_picture(store: Store, objects: FolderObjects, clock: Clock) -> None:
    drawn = []
    for _ in range(20):
        drawn.append(draw(store, objects, clock))
        clock.advance(SETTLED_S / 7)
    clock.advance(SETTLED_S)
    make_room(store, objects, 5 * SIZE)
    for job_id, key in drawn:
        assert store.get(job_id) is None or objects.path(key) is not None


def test_what_was_written_just_now_stays_however_much_it_is(store: Store, objects: FolderObjects, clock: Clock) -> None:
    for _ in range(5):
        draw(store, objects, clock)
    clock.advance(SETTLED_S - 1)
    assert make_room(store, objects, SIZE) == (0, 0)
    clock.advance(2)
    assert make_room(store, objects, SIZE)[1] >= 4


def test_a_picture_that_a_waiting_or_running_request_names_is_spared(
    store: Store, objects: FolderObjects, clock: Clock
) -> None:
    named = [put(objects, clock, age_s=2 * SETTLED_S) for _ in range(2)]
    unnamed = put(objects, clock, age_s=2 * SETTLED_S)
    for key in named:
        store.enqueue(new_job(input={"image_url": f"http://host/files/{key}?x=1"}))
    store.claim("w", 1, LEASE_S)
    assert make_room(store, objects, 1) == (0, 1)
    assert [objects.path(key) is not None for key in (*named, unnamed)] == [True, True, False]


def test_a_node_makes_room_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "ROOM_S", 0.01)
    node = Node.from_settings(Settings(data_dir=tmp_path, device="cpu", keep_gb=1e-6))
    key = node.objects.put(bytes(5000), "image/png", "png")
    path = node.objects.path(key)
    assert path is not None
    os.utime(path, (1, 1))

    async def until_it_is_gone() -> None:
        node.upkeep.start()
        async with asyncio.timeout(30):
            while path.exists():  # noqa: ASYNC110 - the node tells nobody
                await asyncio.sleep(0.01)
        await node.upkeep.stop()
        node.outputs.close()
        node.store.close()

    asyncio.run(until_it_is_gone())
