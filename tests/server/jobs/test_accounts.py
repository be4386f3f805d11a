"""Usage and search of the store, held by every store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.jobs.store.accounts import DAY_S, USAGE_KEPT_DAYS, Search, UsageQuestion, billable_units, day_of
from server.jobs.store.base import Store
from server.jobs.store.job import JobStatus, Outcome
from tests.server.stores import DONE, LEASE_S, OPEN_STORE, REJECTED, Clock, new_job

PICTURE = Outcome(JobStatus.COMPLETED, 200, {"images": [{"width": 1024, "height": 1025}, {"width": 64, "height": 64}]})
"""Three units."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(OPEN_STORE))
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


def draw(store: Store, outcome: Outcome = PICTURE, **about: Any) -> str:
    new = store.enqueue(new_job(**about))
    (job,) = store.claim("w1", 1, LEASE_S)
    assert store.finish(job.id, "w1", job.epoch, outcome)
    return new.id


def used(store: Store, **question: Any) -> list[tuple[Any, ...]]:
    """(endpoint, key, value, requests, failures, units) of every row."""
    asked = replace(UsageQuestion(tenant="ann", days=(0, 10**6)), **question)
    return [
        (row.endpoint, row.key_id, row.value, row.requests, row.failures, row.units) for row in store.usage(asked, 100)
    ]


def test_a_megapixel_is_a_unit_and_every_picture_is_rounded_up() -> None:
    assert billable_units(PICTURE) == 3
    assert billable_units(replace(PICTURE, body={"images": []})) == 0
    assert billable_units(replace(PICTURE, status=JobStatus.FAILED)) == 0


def test_usage_is_counted_by_endpoint_key_and_day(store: Store, clock: Clock) -> None:
    for key in ("a", "a", "b"):
        draw(store, tenant="ann", key_id=key)
    draw(store, tenant="ann", key_id="a", endpoint="fal-ai/flux/schnell")
    draw(store, tenant="bob", key_id="a")
    store.enqueue(new_job(tenant="ann", key_id="a", params=None, outcome=REJECTED))
    clock.advance(DAY_S)
    draw(store, tenant="ann", key_id="a")

    today = day_of(clock.now)
    rows = store.usage(UsageQuestion("ann", (0, today)), 100)
    assert [(today - (row.day or 0), row.endpoint, row.key_id) for row in rows] == [
        (1, "fal-ai/flux/dev", "a"),
        (1, "fal-ai/flux/dev", "b"),
        (1, "fal-ai/flux/schnell", "a"),
        (0, "fal-ai/flux/dev", "a"),
    ]
    assert [(row.requests, row.failures, row.units) for row in rows] == [(2, 1, 6), (1, 0, 3), (1, 0, 3), (1, 0, 3)]
    (total,) = used(store, by_day=False, endpoints=("fal-ai/flux/dev",), keys=("a",))
    assert total == ("fal-ai/flux/dev", "a", "", 3, 1, 9)
    assert len(store.usage(UsageQuestion(None, (today - 1, today - 1)), 100)) == 4
    assert [row.day for row in store.usage(UsageQuestion("ann", (0, today)), 2, 3)] == [today]


def test_pictures_and_seconds_of_devices_are_counted_too(store: Store) -> None:
    for seconds in (1.25, None):
        draw(store, replace(PICTURE, metrics={"device_time": seconds}), tenant="ann", key_id="a")
    (row,) = store.usage(UsageQuestion("ann", (0, 10**6), by_day=False), 10)
    assert (row.requests, row.images, row.seconds) == (2, 2 * len(PICTURE.body["images"]), 1.25)


def test_usage_is_told_apart_by_the_values_of_a_label(store: Store) -> None:
    draw(store, tenant="ann", tags={"team": "web", "user": "7"})
    draw(store, tenant="ann", tags={"team": "app"})
    draw(store, tenant="ann")
    assert [row[2:] for row in used(store, name="team")] == [("app", 1, 0, 3), ("web", 1, 0, 3)]
    assert [row[2:] for row in used(store, name="team", value="web")] == [("web", 1, 0, 3)]
    assert [row[2:] for row in used(store)] == [("", 3, 0, 9)]


def test_usage_outlives_requests_but_not_for_ever(store: Store, clock: Clock) -> None:
    draw(store, tenant="ann")
    clock.advance(10.0)
    assert len(store.sweep(retention_s=5.0)) == 1
    assert used(store) != []
    clock.advance((USAGE_KEPT_DAYS + 1) * DAY_S)
    store.sweep(retention_s=5.0)
    assert used(store) == []


def test_a_search_reads_payloads_only_if_they_are_wanted(store: Store) -> None:
    image = {"url": "data:image/png;base64,AAAA", "width": 2048, "height": 1024}
    done = replace(DONE, body={"images": [image], "prompt": "x"})
    jobs = (new_job(), new_job(outcome=REJECTED), new_job())
    drawn, rejected, waiting = (store.enqueue(job) for job in jobs)
    (job,) = store.claim("w", 1, LEASE_S)
    store.finish(job.id, "w", job.epoch, done)
    brief, whole = ({job.id: job for job in store.find(Search(None), 9, told)} for told in (False, True))
    assert whole[drawn.id] == store.get(drawn.id)
    assert brief[drawn.id] == replace(
        whole[drawn.id], input={}, outcome=replace(done, body={"images": [{"width": 2048, "height": 1024}]})
    )
    assert brief[rejected.id] == replace(whole[rejected.id], input={}, outcome=replace(REJECTED, body={"images": []}))
    assert brief[waiting.id] == replace(whole[waiting.id], input={})


def test_requests_are_found_by_label_state_endpoint_key_and_time(store: Store, clock: Clock) -> None:
    first = draw(store, tenant="ann", key_id="a", tags={"team": "web", "user": "7"})
    clock.advance(60.0)
    second = draw(store, tenant="ann", key_id="b", tags={"team": "web"}, endpoint="fal-ai/flux/schnell")
    third = store.enqueue(new_job(tenant="ann", params=None, outcome=REJECTED, tags={"team": "app"})).id
    draw(store, tenant="bob", tags={"team": "web"})

    def ids(**search: Any) -> list[str]:
        return [job.id for job in store.find(replace(Search("ann"), **search), 100)]

    assert ids() == [third, second, first]
    assert ids(tags=(("team", "web"),)) == [second, first]
    assert ids(tags=(("team", "web"), ("user", "7"))) == [first]
    assert ids(statuses=(JobStatus.FAILED, JobStatus.CANCELLED)) == [third]
    assert ids(endpoints=("fal-ai/flux/schnell",)) == [second]
    assert ids(keys=("a",)) == [first]
    assert ids(ids=(first, third)) == [third, first]
    assert ids(since=clock.now - 30) == [third, second]
    assert ids(until=clock.now - 30) == [first]
    assert len(store.find(Search(None), 100)) == 4


def test_pages_of_a_search_follow_each_other_while_others_are_stored(store: Store) -> None:
    stored = [store.enqueue(new_job(tags={"team": "web"})).id for _ in range(5)]
    page = store.find(Search("", tags=(("team", "web"),)), 2)
    store.enqueue(new_job(tags={"team": "web"}))
    rest = store.find(Search("", tags=(("team", "web"),), before=page[-1].seq), 10)
    assert [job.id for job in [*page, *rest]] == stored[::-1]


def test_labels_go_with_their_request(store: Store, clock: Clock) -> None:
    draw(store, tags={"team": "web"})
    clock.advance(10.0)
    store.sweep(retention_s=5.0)
    assert store.find(Search(None, tags=(("team", "web"),)), 10) == []


def test_how_ended_requests_went_is_read_without_their_payloads(store: Store, clock: Clock) -> None:
    store.enqueue(new_job(tenant="ann", params=None, outcome=REJECTED))
    new = new_job(tenant="ann")
    store.enqueue(new)
    clock.advance(2.0)
    (job,) = store.claim("w1", 1, LEASE_S)
    clock.advance(3.0)
    store.finish(job.id, "w1", job.epoch, PICTURE)
    store.enqueue(new_job(tenant="ann"))
    draw(store, tenant="bob")
    went = [(row.http_status, row.waited_s, row.ran_s) for row in store.ended(Search("ann"), 10)]
    assert went == [(200, 2.0, 3.0), (422, None, None)]
    assert len(store.ended(Search("ann"), 2)) == 1, "what waits is among those that were looked at"
