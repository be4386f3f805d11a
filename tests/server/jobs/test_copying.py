"""A store copied into another of either kind is the same store, or nothing was copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.jobs.store.accounts import Search, UsageQuestion
from server.jobs.store.copying import AT_ONCE, CopyError, copy
from server.jobs.store.deliveries import WebhookAnswer
from server.jobs.store.errors import StoreError
from server.jobs.store.job import JobStatus, Repeat
from server.jobs.store.nodes import NodeReport
from server.jobs.store.sql import SqlStore
from tests.server.stores import DONE, LEASE_S, OPEN_STORE, REJECTED, Clock, new_job

Open = Callable[[str, str], SqlStore]
EVERYTHING = Search(tenant=None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """By kind and name."""
    stores: list[SqlStore] = []

    def open_one(kind: str, name: str) -> SqlStore:
        (tmp_path / name).mkdir(exist_ok=True)
        store = OPEN_STORE[kind](tmp_path / name, clock)
        assert isinstance(store, SqlStore)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


def fill(store: SqlStore, clock: Clock) -> None:
    """Jobs in every state with all that hangs on them."""
    strange = {"prompt": "a \ud800 b\0c é", "n": 10**30}
    repeat = Repeat("name", b"\0digest\xff")
    store.enqueue(new_job(input=strange, tags={"team": "wéb"}, picture_key=b"\xff\0", repeat=repeat, tenant="t"))
    store.enqueue(new_job(webhook_url="http://a.example/x", key_id="k", priority=1))
    store.enqueue(new_job(outcome=REJECTED, params=None, store_io=False, webhook_url="http://b.example/"))
    waiting = store.enqueue(new_job(repeat=Repeat(None, b"digest")))
    store.note_answer(waiting.id, is_delivered=False)
    for owner, end in (("w1", True), ("w2", False)):
        (job,) = store.claim(owner, 1, LEASE_S)
        if end:
            assert store.finish(job.id, owner, job.epoch, DONE)
    clock.advance(1.5)
    (delivery, *_) = store.due_webhooks(10)
    store.settle_webhook(delivery, WebhookAnswer(False, "gone \0 away", None, 0.25), 30.0)
    store.pause("key", "held")
    store.sweep(1e9)


def content(store: SqlStore) -> list[Any]:
    """What callers see of it."""
    found = store.find(EVERYTHING, 1000, with_payloads=True)
    about = [(store.state(job.id), store.webhook(job.id), store.webhook_tries(job.id)) for job in found]
    usage = store.usage(UsageQuestion(tenant=None, days=(0, 10**6)), 100)
    words = [job.id for job in store.find(Search(tenant=None, text="red circ"), 10)]
    tagged = [job.id for job in store.find(Search(tenant=None, tags=(("team", "wéb"),)), 10)]
    return [found, about, usage, words, tagged, store.pauses(), store.counts(), store.units_since("k", 0)]


def plain(values: Any) -> str:
    return repr(values).replace("\\x00", "\ufffd").replace("\\ufffd", "\ufffd")


@pytest.mark.parametrize(
    ("first", "second"),
    [("sqlite", "postgres"), ("postgres", "sqlite"), ("sqlite", "sqlite"), ("postgres", "postgres")],
)
def test_a_copy_is_the_same_and_goes_on(opened: Open, clock: Clock, first: str, second: str) -> None:
    source, target = opened(first, "source"), opened(second, "target")
    fill(source, clock)
    told: list[tuple[str, int, int]] = []
    copied = copy(source, target, lambda *step: told.append(step))
    assert copied.tallies["job"].rows == 5 - 1
    assert len(copied.digest) == 64
    assert all(done == of for _, done, of in told)
    target.close()
    target = opened(second, "target")
    assert plain(content(target)) == plain(content(source))
    # It goes on where the other was: rows get new numbers, and what was named is known by its name.
    newest = target.find(EVERYTHING, 1)[0]
    later = target.enqueue(new_job())
    assert later.seq > newest.seq
    again = target.enqueue(new_job(input={}, repeat=Repeat("name", b"\0digest\xff"), tenant="t"))
    assert again.seq == 1
    clock.advance(60.0)
    (delivery,) = target.due_webhooks(10)
    target.settle_webhook(delivery, WebhookAnswer(True, "HTTP 200", 200, 0.1), None)
    assert [one_try.http_status for one_try in target.webhook_tries(delivery.job_id)] == [None, 200]


def test_what_a_dead_node_left_running_waits_without_a_lost_attempt(opened: Open) -> None:
    source, target = opened("sqlite", "source"), opened("postgres", "target")
    source.enqueue(new_job())
    (job,) = source.claim("gone", 1, LEASE_S)
    copy(source, target)
    (copied,) = target.find(EVERYTHING, 10)
    assert (copied.id, copied.status, copied.attempt, copied.deaths) == (job.id, JobStatus.QUEUED, 0, 0)


def test_more_rows_than_are_read_at_once(opened: Open) -> None:
    source, target = opened("sqlite", "source"), opened("sqlite", "target")
    source.transact(lambda tx: [source._insert(tx, new_job(), None, None) for _ in range(2 * AT_ONCE + 1)])
    told: list[tuple[str, int, int]] = []
    assert copy(source, target, lambda *step: told.append(step)).tallies["job"].rows == 2 * AT_ONCE + 1
    assert [done for table, done, _ in told if table == "job"] == [AT_ONCE, 2 * AT_ONCE, 2 * AT_ONCE + 1]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_store_that_is_not_empty_is_not_written_to(opened: Open, clock: Clock, kind: str) -> None:
    source, target = opened("sqlite", "source"), opened(kind, "target")
    fill(source, clock)
    target.pause("model", "mine")
    with pytest.raises(StoreError, match="not empty"):
        copy(source, target)
    assert [pause.name for pause in target.pauses()] == ["mine"]
    assert target.find(EVERYTHING, 10) == []


@pytest.mark.parametrize("is_source", [True, False])
def test_a_store_that_nodes_use_is_not_copied(opened: Open, is_source: bool) -> None:
    source, target = opened("postgres", "source"), opened("postgres", "target")
    used: Any = source if is_source else target
    used.note_node(NodeReport("gpu1-ab", None, "1", "ready", 0.0))
    with pytest.raises(StoreError, match="stop them first: gpu1-ab"):
        copy(source, target)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_copy_that_breaks_off_leaves_nothing(opened: Open, clock: Clock, kind: str) -> None:
    source, target = opened("sqlite", "source"), opened(kind, "target")
    fill(source, clock)
    (done,) = [job for job in source.find(EVERYTHING, 10) if job.status is JobStatus.COMPLETED]

    def damage(tx: Any) -> None:
        tx.execute("DROP TRIGGER job_ends_once")
        tx.execute("UPDATE job SET outcome = '{' WHERE seq = ?", (done.seq,))

    source.transact(damage)
    with pytest.raises(CopyError, match=f"the request {done.id} cannot be read"):
        copy(source, target)
    assert target.find(EVERYTHING, 10) == []
    assert target.usage(UsageQuestion(tenant=None, days=(0, 10**6)), 10) == []


def test_a_row_that_is_not_what_it_was_is_found(opened: Open, clock: Clock) -> None:
    source, target = opened("sqlite", "source"), opened("sqlite", "target")
    fill(source, clock)
    count_on = "UPDATE usage SET units = units + 1"
    object.__setattr__(target.dialect, "count_on", (count_on,))
    try:
        with pytest.raises(CopyError, match="the table usage is not what it was"):
            copy(source, target)
    finally:
        object.__setattr__(target.dialect, "count_on", ())
    assert target.find(EVERYTHING, 10) == []
