"""The contract of `Store`, held by every store: the same tests run over all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.jobs.store import memory, outbox, transitions
from server.jobs.store.accounts import Search
from server.jobs.store.base import NAMED_KEPT_S, PRIVATE_RETENTION_S, UNDELIVERED_KEPT_S, Store
from server.jobs.store.deliveries import LOG_KEPT_S, TRIES_KEPT, Redelivery, WebhookAnswer, WebhookDelivery, WebhookTry
from server.jobs.store.errors import InputsFullError, QueueFullError, RepeatMismatchError, StoreError
from server.jobs.store.job import LOW_PRIORITY_DELAY_S, CancelOutcome, Job, JobStatus, NewJob, Repeat
from server.jobs.store.kept_input import LONG, MAX_CHARACTERS, kept
from server.jobs.store.transitions import MAX_CLAIMS
from tests.server.stores import DONE, LEASE_S, OPEN_STORE, REJECTED, SHARED, Clock, new_job, place


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=sorted(OPEN_STORE))
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


@pytest.fixture(params=sorted(set(OPEN_STORE) - SHARED))
def embedded(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """A store that belongs to one node: at its start no other can be running anything."""
    opened = OPEN_STORE[request.param](tmp_path, clock)
    yield opened
    opened.close()


def claim_one(store: Store, owner: str = "w1") -> Job:
    (job,) = store.claim(owner, 1, LEASE_S)
    return job


def fetch(store: Store, job_id: str) -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


# Large inputs

PICTURE = "data:image/png;base64," + 100_000 * "A"
CUT = f"{PICTURE[:64]}... (100022 characters, not kept)"


def test_a_large_input_is_kept_whole_until_its_job_has_ended(store: Store) -> None:
    asked = {"prompt": "a fox", "image_url": PICTURE, "loras": [{"path": PICTURE, "scale": 1.5}]}
    job_id = store.enqueue(new_job(input=asked)).id
    job = claim_one(store)
    assert job.input == fetch(store, job_id).input == asked
    assert store.finish(job_id, "w1", job.epoch, DONE)
    assert fetch(store, job_id).input == {"prompt": "a fox", "image_url": CUT, "loras": [{"path": CUT, "scale": 1.5}]}


@pytest.mark.parametrize("value", [PICTURE, 50_000 * [1.5], {f"name {n}": 40 * "x" for n in range(2000)}])
def test_a_job_that_ends_as_it_is_stored_or_waits_keeps_nothing_large(store: Store, value: Any) -> None:
    asked = {"prompt": "a fox", "unknown": value}
    rejected = store.enqueue(new_job(input=asked, outcome=REJECTED))
    waiting = store.enqueue(new_job(input=asked))
    store.request_cancel(waiting.id)
    for job_id in (rejected.id, waiting.id):
        assert len(str(fetch(store, job_id).input)) < 1000
    small = store.enqueue(new_job(input={"prompt": 1000 * "long "}, outcome=REJECTED))
    assert fetch(store, small.id).input == {"prompt": 1000 * "long "}


def test_an_input_that_just_fits_is_kept_whole_or_cut() -> None:
    whole = {"p": (MAX_CHARACTERS - 1) * "x"}
    assert kept(whole) is whole
    shorts = {"p": 8 * LONG * "x"} | {f"{n:03}": (LONG - 3) * "y" for n in range(7)}
    cut = kept(shorts)
    shorts["zzzz"] = (MAX_CHARACTERS - _characters(cut) - 4) * "z"
    assert _characters(kept(shorts)) == MAX_CHARACTERS
    assert kept(shorts | {"zzzz": shorts["zzzz"] + "z"}) == {}


def _characters(value: dict[str, str]) -> int:
    return sum(len(name) + len(text) for name, text in value.items())


# Pictures that answer a later request

KEY = b"what decides a picture"


def draw(store: Store, **changes: Any) -> str:
    """A job with KEY, ended well."""
    new = new_job(picture_key=KEY, **changes)
    store.enqueue(new)
    job = claim_one(store)
    assert store.finish(job.id, "w1", job.epoch, DONE)
    return new.id


def test_the_newest_picture_of_a_tenant_is_found_by_what_decides_it(store: Store) -> None:
    asked = new_job(picture_key=KEY, tenant="ann")
    draw(store, tenant="bob")
    draw(store)
    draw(store, tenant="ann", store_io=False)
    assert store.drawn(asked) is None
    draw(store, tenant="ann")
    newest = draw(store, tenant="ann")
    store.enqueue(asked)
    found = store.drawn(asked)
    assert found is not None
    assert (found.id, found.picture_key) == (newest, KEY)
    assert store.drawn(new_job(picture_key=b"another", tenant="ann")) is None
    store.sweep(-1)
    assert store.drawn(asked) is None


# Submits that come twice

NAMED, UNNAMED = Repeat("key-1", b"body"), Repeat(None, b"body")


def test_a_submit_with_a_key_is_the_same_request_for_a_day(store: Store, clock: Clock) -> None:
    first = store.enqueue(new_job(repeat=NAMED))
    store.note_answer(first.id, is_delivered=True)
    clock.advance(NAMED_KEPT_S - 1)
    store.sweep(7 * 86400)
    assert store.enqueue(new_job(repeat=NAMED)) == first
    assert store.enqueue(new_job(repeat=NAMED), max_queued=0) == first, "an accepted one is not refused afterwards"
    clock.advance(2)
    assert store.enqueue(new_job(repeat=NAMED)).id != first.id
    assert store.counts()[JobStatus.QUEUED] == 2


def test_a_key_that_stands_for_another_body_is_refused(store: Store) -> None:
    store.enqueue(new_job(repeat=NAMED))
    with pytest.raises(RepeatMismatchError):
        store.enqueue(new_job(repeat=Repeat("key-1", b"another")))
    assert store.counts()[JobStatus.QUEUED] == 1


@pytest.mark.parametrize("repeat", [NAMED, UNNAMED])
@pytest.mark.parametrize("other", [{"tenant": "b"}, {"endpoint": "fal-ai/flux/schnell"}])
def test_a_repeat_is_one_of_the_same_tenant_and_endpoint(store: Store, repeat: Repeat, other: dict[str, str]) -> None:
    first = store.enqueue(new_job(repeat=repeat))
    store.note_answer(first.id, is_delivered=False)
    assert store.enqueue(new_job(repeat=repeat, **other)).id != first.id
    assert store.enqueue(new_job(repeat=repeat)) == first


def test_a_submit_whose_answer_got_lost_is_found_for_two_minutes(store: Store, clock: Clock) -> None:
    first = store.enqueue(new_job(repeat=UNNAMED))
    assert store.enqueue(new_job(repeat=UNNAMED)).id != first.id, "both answers are under way: two requests"
    store.note_answer(first.id, is_delivered=False)
    claim_one(store)
    clock.advance(UNDELIVERED_KEPT_S - 1)
    assert store.enqueue(new_job(repeat=UNNAMED)) == fetch(store, first.id)
    assert store.enqueue(new_job(repeat=Repeat(None, b"another"))).id != first.id
    clock.advance(2)
    assert store.enqueue(new_job(repeat=UNNAMED)).id != first.id


def test_a_submit_that_was_answered_is_not_found(store: Store) -> None:
    first = store.enqueue(new_job(repeat=UNNAMED))
    store.note_answer(first.id, is_delivered=False)
    again = store.enqueue(new_job(repeat=UNNAMED))
    store.note_answer(again.id, is_delivered=True)
    assert again == first
    assert store.enqueue(new_job(repeat=UNNAMED)).id != first.id


def test_what_a_dead_node_had_not_answered_is_found(embedded: Store) -> None:
    answered, unanswered = new_job(repeat=Repeat(None, b"answered")), new_job(repeat=UNNAMED)
    embedded.enqueue(answered)
    embedded.enqueue(unanswered)
    embedded.note_answer(answered.id, is_delivered=True)
    embedded.recover()
    assert embedded.enqueue(new_job(repeat=UNNAMED)).id == unanswered.id
    assert embedded.enqueue(new_job(repeat=answered.repeat)).id != answered.id


def test_a_swept_request_is_no_longer_repeated(store: Store, clock: Clock) -> None:
    first = store.enqueue(new_job(repeat=NAMED, params=None, outcome=REJECTED, store_io=False))
    clock.advance(PRIVATE_RETENTION_S + 1)
    assert store.sweep(7 * 86400) == [first.id]
    assert store.enqueue(new_job(repeat=NAMED)).id != first.id


# Storing and reading


def test_a_stored_job_reads_back_as_it_was_submitted(store: Store, clock: Clock) -> None:
    new = new_job(
        priority=1, start_within_s=9.0, webhook_url="https://x.test/hook", base_url="http://h", store_io=False
    )
    stored = store.enqueue(new)
    assert stored == store.get(new.id)
    assert (stored.input, stored.params, stored.output) == (new.input, new.params, new.output)
    assert (stored.status, stored.epoch, stored.attempt, stored.outcome) == (JobStatus.QUEUED, 0, 0, None)
    assert (stored.created_at, stored.start_deadline) == (clock.now, clock.now + 9.0)
    assert (stored.webhook_url, stored.base_url, stored.store_io) == ("https://x.test/hook", "http://h", False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_a_client_sends_survives_the_store(store: Store, value: object) -> None:
    stored = store.enqueue(new_job(input={"prompt": value, "lone": "\ud800", "big": 2**70}))
    assert fetch(store, stored.id).input == {"prompt": value, "lone": "\ud800", "big": 2**70}


def test_an_unknown_id_is_none(store: Store) -> None:
    assert store.get("nobody") is None
    assert store.state("nobody") is None


def test_an_id_is_taken_once(store: Store) -> None:
    first = store.enqueue(new_job())
    with pytest.raises(StoreError, match="taken"):
        store.enqueue(new_job(id=first.id, input={"prompt": "another"}))
    assert store.get(first.id) == first


def test_a_full_queue_refuses_and_stores_nothing(store: Store) -> None:
    store.enqueue(new_job(), max_queued=2)
    store.enqueue(new_job(), max_queued=2)
    third = new_job()
    with pytest.raises(QueueFullError):
        store.enqueue(third, max_queued=2)
    assert store.get(third.id) is None
    claim_one(store)
    assert store.enqueue(third, max_queued=2).id == third.id


def test_a_large_input_that_waits_alone_has_room(store: Store) -> None:
    large = {"prompt": "", "image_url": "data:" + "A" * 99_900}
    first = store.enqueue(new_job(input=large), max_bytes=1)
    with pytest.raises(InputsFullError):
        store.enqueue(new_job(input=large), max_bytes=1)
    assert claim_one(store).id == first.id
    store.enqueue(new_job(input=large), max_bytes=1)


def test_large_inputs_of_one_tenant_leave_room_for_those_of_others(store: Store) -> None:
    def large(tenant: str, **more: Any) -> NewJob:
        return new_job(input={"prompt": "", "image_url": "data:" + "A" * 99_900}, tenant=tenant, **more)

    first = store.enqueue(large("alice", repeat=NAMED), max_bytes=500_000)
    store.enqueue(large("alice"), max_bytes=500_000)
    with pytest.raises(InputsFullError):
        store.enqueue(large("alice"), max_bytes=500_000)
    assert store.enqueue(large("alice", repeat=NAMED), max_bytes=500_000) == first, "it has been accepted"
    store.enqueue(new_job(tenant="alice"), max_bytes=1)
    store.enqueue(large("bob"), max_bytes=500_000)
    assert claim_one(store).id == first.id
    store.enqueue(large("alice"), max_bytes=500_000)
    with pytest.raises(InputsFullError):
        store.enqueue(large("alice"), max_bytes=500_000)


def test_a_job_stored_with_its_outcome_has_ended(store: Store, clock: Clock) -> None:
    stored = store.enqueue(new_job(params=None, outcome=REJECTED), max_queued=0)
    assert (stored.status, stored.outcome, stored.finished_at) == (JobStatus.FAILED, REJECTED, clock.now)
    assert store.claim("w1", 5, LEASE_S) == []


# Order


def test_jobs_are_claimed_oldest_first_and_positions_say_so(store: Store) -> None:
    ids = [store.enqueue(new_job()).id for _ in range(4)]
    assert [place(store, job_id) for job_id in ids] == [0, 1, 2, 3]
    assert [job.id for job in store.claim("w1", 2, LEASE_S)] == ids[:2]
    assert [place(store, job_id) for job_id in ids] == [None, None, 0, 1]


def test_a_low_job_yields_to_newer_normal_ones_but_not_for_ever(store: Store, clock: Clock) -> None:
    low = store.enqueue(new_job(priority=1))
    clock.advance(LOW_PRIORITY_DELAY_S - 1)
    before = store.enqueue(new_job())
    clock.advance(2)
    after = store.enqueue(new_job())
    assert [place(store, job.id) for job in (before, low, after)] == [0, 1, 2]
    assert [job.id for job in store.claim("w1", 3, LEASE_S)] == [before.id, low.id, after.id]


# Tenants


def ids_of(store: Store, tenant: str, number: int, **changes: Any) -> list[str]:
    return [store.enqueue(new_job(tenant=tenant, **changes)).id for _ in range(number)]


def claim_ids(store: Store, limit: int = 1, at_most: int | None = None) -> list[str]:
    return [job.id for job in store.claim("w1", limit, LEASE_S, at_most=lambda tenant: at_most)]


def test_what_is_anothers_is_unknown(store: Store) -> None:
    waiting, running, ended = ids_of(store, "ann", 3)
    store.claim("w1", 1, LEASE_S)
    store.request_cancel(ended)
    for job_id in (waiting, running, ended):
        assert store.state(job_id, "bob") is None
        assert store.state(job_id, "ann") == store.state(job_id) is not None


def test_what_was_asked_for_without_a_key_is_everybodys(store: Store) -> None:
    job = store.enqueue(new_job())
    assert store.state(job.id, "ann") == store.state(job.id) is not None
    store.request_cancel(job.id)
    assert store.state(job.id, "ann") == store.state(job.id) is not None


def test_a_thousand_requests_of_one_do_not_hide_the_one_of_another(store: Store, clock: Clock) -> None:
    many = ids_of(store, "ann", 1000)
    assert claim_ids(store, 3) == many[:3]
    clock.advance(100)
    few = ids_of(store, "bob", 3)
    assert [place(store, job_id) for job_id in few] == [0, 2, 4]
    assert few[0] in claim_ids(store, 2)
    assert set(few) < set(claim_ids(store, 5)) | {few[0]}


def test_turns_go_to_who_has_had_least(store: Store) -> None:
    ann, bob = ids_of(store, "ann", 4), ids_of(store, "bob", 4)
    assert [claim_ids(store)[0] for _ in range(4)] == [ann[0], bob[0], ann[1], bob[1]]
    assert claim_ids(store, 4) == [ann[2], bob[2], ann[3], bob[3]]


def test_large_requests_are_paid_for(store: Store) -> None:
    params = {"model": "m", "width": 1024, "height": 1024, "num_images": 1, "num_inference_steps": 1}
    large = ids_of(store, "ann", 3, params=params | {"num_images": 4})
    small = ids_of(store, "bob", 6, params=params)
    assert claim_ids(store, 7) == [large[0], *small[:4], large[1], small[4]]


def test_nobody_saves_turns_up_by_waiting(store: Store) -> None:
    ids_of(store, "bob", 1)
    ann = ids_of(store, "ann", 20)
    claim_ids(store, 11)
    bob = ids_of(store, "bob", 5)
    order = claim_ids(store, 6)
    assert [job_id in bob for job_id in order].count(True) == 3, "in turn from here on, not five in a row"
    assert order[-1] in {*ann, *bob}


def test_a_young_low_job_yields_to_everybodys_normal_ones(store: Store, clock: Clock) -> None:
    low = ids_of(store, "ann", 1, priority=1)
    normal = ids_of(store, "bob", 3)
    assert claim_ids(store, 4) == [*normal, *low]
    low, _ = ids_of(store, "ann", 1, priority=1), clock.advance(LOW_PRIORITY_DELAY_S)
    normal = ids_of(store, "bob", 3)
    assert claim_ids(store, 2) == [low[0], normal[0]]


def test_no_more_of_a_tenant_run_than_it_may(store: Store) -> None:
    ann = ids_of(store, "ann", 4)
    assert claim_ids(store, 3, at_most=2) == ann[:2]
    bob = ids_of(store, "bob", 1)
    assert claim_ids(store, 3, at_most=2) == bob
    job = fetch(store, ann[0])
    store.finish(job.id, "w1", job.epoch, DONE)
    assert claim_ids(store, 3, at_most=2) == [ann[2]]
    assert claim_ids(store, 3, at_most=2) == []
    store.release("w1", died=False)
    assert sorted(claim_ids(store, 9, at_most=2)) == sorted([ann[1], ann[2], *bob])


def test_a_tenant_has_its_own_limit_on_what_waits(store: Store) -> None:
    store.enqueue(new_job(tenant="ann"), max_own=1)
    with pytest.raises(QueueFullError):
        store.enqueue(new_job(tenant="ann"), max_own=1)
    store.enqueue(new_job(tenant="bob"), max_queued=2, max_own=1)
    with pytest.raises(QueueFullError):
        store.enqueue(new_job(tenant="cyd"), max_queued=2, max_own=1)


def test_only_jobs_of_the_models_that_the_claimer_holds(store: Store) -> None:
    store.enqueue(new_job(params={"model": "other"}))
    mine = store.enqueue(new_job(params={"model": "mine"}))
    assert [job.id for job in store.claim("w1", 5, LEASE_S, frozenset({"mine"}))] == [mine.id]
    assert store.claim("w1", 5, LEASE_S, frozenset()) == []


def test_only_jobs_of_the_buckets_that_are_the_claimers_or_of_none(store: Store) -> None:
    ids = [store.enqueue(new_job(hint_bucket=bucket)).id for bucket in (3, None, 5)]
    assert fetch(store, ids[0]).hint_bucket == 3
    assert [job.id for job in store.claim("w1", 5, LEASE_S, buckets=frozenset({5, 9}))] == ids[1:]
    assert store.claim("w1", 5, LEASE_S, buckets=frozenset()) == []
    assert [job.id for job in store.claim("w1", 5, LEASE_S)] == ids[:1]


def test_positions_agree_with_the_order_of_claims(store: Store, clock: Clock) -> None:
    ids = []
    for number in range(40):
        clock.advance(20)
        ids.append(store.enqueue(new_job(priority=int(number % 3 == 0))).id)
    places = {job_id: place(store, job_id) for job_id in ids}
    order = [job.id for job in store.claim("w1", 40, LEASE_S)]
    assert order != ids
    assert [places[job_id] for job_id in order] == list(range(40))


# Claims and leases


def test_a_claim_marks_the_row(store: Store, clock: Clock) -> None:
    store.enqueue(new_job())
    job = claim_one(store)
    assert (job.status, job.owner, job.epoch, job.attempt) == (JobStatus.RUNNING, "w1", 1, 1)
    assert (job.started_at, job.lease_until) == (clock.now, clock.now + LEASE_S)
    assert store.get(job.id) == job


def test_two_claimers_never_get_the_same_job(store: Store) -> None:
    ids = {store.enqueue(new_job()).id for _ in range(60)}
    start = threading.Barrier(4)

    def take_all(owner: str) -> list[str]:
        start.wait()
        taken: list[str] = []
        while jobs := store.claim(owner, 2, LEASE_S):
            taken += [job.id for job in jobs]
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [job_id for ids in pool.map(take_all, "abcd") for job_id in ids]
    assert len(taken) == len(ids)
    assert set(taken) == ids


def test_an_expired_lease_is_claimed_by_another_worker(store: Store, clock: Clock) -> None:
    store.enqueue(new_job())
    first = claim_one(store)
    clock.advance(LEASE_S - 1)
    assert store.expire() == []
    clock.advance(1)
    (released,) = store.expire()
    assert (released.id, released.status, released.deaths) == (first.id, JobStatus.QUEUED, 0)
    second = claim_one(store, "w2")
    assert (second.id, second.owner, second.epoch, second.attempt) == (first.id, "w2", 2, 1)


def test_a_renewed_lease_does_not_expire(store: Store, clock: Clock) -> None:
    store.enqueue(new_job())
    claim_one(store)
    for _ in range(10):
        clock.advance(LEASE_S / 2)
        assert store.renew("w1", LEASE_S) == []
        assert store.expire() == []


def test_a_job_keeps_its_place_when_its_worker_is_gone(store: Store, clock: Clock) -> None:
    first = store.enqueue(new_job())
    clock.advance(1)
    second = store.enqueue(new_job())
    assert claim_one(store).id == first.id
    store.release("w1", died=True)
    assert [place(store, job.id) for job in (first, second)] == [0, 1]


# Ends


def test_the_claim_that_holds_a_job_ends_it(store: Store, clock: Clock) -> None:
    store.enqueue(new_job())
    job = claim_one(store)
    clock.advance(2)
    assert store.finish(job.id, "w1", job.epoch, DONE)
    done = fetch(store, job.id)
    assert (done.status, done.outcome, done.finished_at) == (JobStatus.COMPLETED, DONE, clock.now)
    assert (done.owner, done.lease_until) == (None, None)


def test_a_zombie_cannot_end_a_job(store: Store) -> None:
    store.enqueue(new_job())
    old = claim_one(store)
    store.release("w1", died=True)
    new = claim_one(store, "w2")
    assert not store.finish(old.id, "w1", old.epoch, DONE)
    assert not store.finish(old.id, "w1", new.epoch, DONE)
    assert not store.finish(old.id, "w2", old.epoch, DONE)
    assert store.get(new.id) == new
    assert store.finish(new.id, "w2", new.epoch, DONE)
    assert not store.finish(new.id, "w2", new.epoch, REJECTED)
    assert fetch(store, new.id).outcome == DONE


def test_nobody_ends_an_unknown_or_waiting_job(store: Store) -> None:
    waiting = store.enqueue(new_job())
    assert not store.finish("nobody", "w1", 1, DONE)
    assert not store.finish(waiting.id, "w1", 0, DONE)
    assert store.get(waiting.id) == waiting


def test_of_many_enders_at_once_one_wins(store: Store) -> None:
    store.enqueue(new_job())
    job = claim_one(store)
    start = threading.Barrier(6)

    def end(_: int) -> bool:
        start.wait()
        return store.finish(job.id, "w1", job.epoch, DONE)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(end, range(6))) == 1


# Deaths, faults, attempts


def test_two_lone_deaths_end_a_poison_job(store: Store) -> None:
    store.enqueue(new_job())
    statuses = []
    for _ in range(2):
        claim_one(store)
        (job,) = store.release("w1", died=True)
        statuses.append(job.status)
    assert statuses == [JobStatus.QUEUED, JobStatus.FAILED]
    assert job.outcome is not None
    assert (job.outcome.http_status, job.outcome.error_type) == (503, "runner_disconnected")


def test_three_deaths_in_company_end_a_job(store: Store) -> None:
    for _ in range(2):
        store.enqueue(new_job())
    for expected in (JobStatus.QUEUED, JobStatus.QUEUED, JobStatus.FAILED):
        assert len(store.claim("w1", 2, LEASE_S)) == 2
        assert {job.status for job in store.release("w1", died=True)} == {expected}


def test_suspects_can_be_claimed_by_themselves(store: Store) -> None:
    suspect, fresh = store.enqueue(new_job()), store.enqueue(new_job())
    assert store.quarantined() == 0
    claim_one(store)
    store.release("w1", died=True)
    assert store.quarantined() == 1
    assert [job.id for job in store.claim("w1", 5, LEASE_S, quarantined=False)] == [fresh.id]
    assert [job.id for job in store.claim("w1", 5, LEASE_S, quarantined=True)] == [suspect.id]
    assert store.quarantined() == 0


def test_a_job_that_the_dead_worker_had_not_begun_is_not_blamed(store: Store) -> None:
    suspect, waiting = store.enqueue(new_job()), store.enqueue(new_job())
    store.claim("w1", 2, LEASE_S)
    store.release("w1", died=True, not_started=frozenset({waiting.id}))
    assert (fetch(store, suspect.id).deaths, fetch(store, suspect.id).lone_deaths) == (1, 1)
    assert (fetch(store, waiting.id).deaths, fetch(store, waiting.id).lone_deaths) == (0, 0)


def test_a_death_releases_only_its_own_claims(store: Store) -> None:
    store.enqueue(new_job())
    store.enqueue(new_job())
    claim_one(store, "w1")
    other = claim_one(store, "w2")
    assert len(store.release("w1", died=True)) == 1
    assert store.get(other.id) == other


def test_what_is_being_saved_stays_claimed_when_its_worker_dies(store: Store) -> None:
    """And counts for nothing: the other was alone in the worker."""
    drawn, running = store.enqueue(new_job()), store.enqueue(new_job())
    claims = {job.id: job for job in store.claim("w1", 2, LEASE_S)}
    (released,) = store.release("w1", died=True, keep=frozenset({drawn.id}))
    assert (released.id, released.status, released.lone_deaths) == (running.id, JobStatus.QUEUED, 1)
    assert store.finish(drawn.id, "w1", claims[drawn.id].epoch, DONE)


def test_no_retry_means_one_attempt(store: Store) -> None:
    store.enqueue(new_job(max_attempts=1))
    claim_one(store)
    (job,) = store.release("w1", died=True)
    assert job.status is JobStatus.FAILED


def test_a_handed_back_job_has_its_attempt_back(store: Store) -> None:
    store.enqueue(new_job(max_attempts=1))
    for epoch in (1, 2, 3):
        job = claim_one(store)
        assert (job.epoch, job.attempt) == (epoch, 1)
        (job,) = store.release("w1", died=False)
        assert (job.status, job.attempt, job.deaths) == (JobStatus.QUEUED, 0, 0)


def test_internal_faults_use_up_the_attempts(store: Store) -> None:
    new = store.enqueue(new_job(max_attempts=3))
    for _ in range(3):
        job = claim_one(store)
        assert store.release_one(job.id, "w1", job.epoch)
        assert not store.release_one(job.id, "w1", job.epoch)
    ended = fetch(store, new.id)
    assert (ended.status, ended.deaths) == (JobStatus.FAILED, 0)
    assert ended.outcome is not None
    assert ended.outcome.http_status == 503


def test_after_a_restart_every_claim_is_given_up(embedded: Store) -> None:
    retried, once = embedded.enqueue(new_job()), embedded.enqueue(new_job(max_attempts=1))
    embedded.claim("old-node", 2, LEASE_S)
    assert len(embedded.recover()) == 2
    assert (fetch(embedded, retried.id).status, fetch(embedded, retried.id).deaths) == (JobStatus.QUEUED, 0)
    assert (fetch(embedded, once.id).status, fetch(embedded, once.id).attempt) == (JobStatus.QUEUED, 0)
    assert embedded.recover() == []


def test_a_job_that_may_run_once_has_had_its_run_when_the_node_dies_in_it(embedded: Store) -> None:
    embedded.enqueue(new_job(max_attempts=1))
    job = claim_one(embedded)
    embedded.note_begun(job.id, "w1", job.epoch - 1)
    embedded.note_begun(job.id, "another", job.epoch)
    assert not fetch(embedded, job.id).has_begun
    embedded.note_begun(job.id, "w1", job.epoch)
    assert fetch(embedded, job.id).has_begun
    (after,) = embedded.recover()
    assert after.outcome is not None
    assert (after.status, after.outcome.http_status) == (JobStatus.FAILED, 503)


def test_a_begun_mark_belongs_to_its_claim(store: Store) -> None:
    store.enqueue(new_job(max_attempts=1))
    job = claim_one(store)
    store.note_begun(job.id, "w1", job.epoch)
    store.release("w1", died=False)
    assert not claim_one(store).has_begun


def test_kills_of_the_node_use_up_no_attempt(embedded: Store) -> None:
    embedded.enqueue(new_job())
    for _ in range(MAX_CLAIMS - 1):
        claim_one(embedded)
        (job,) = embedded.recover()
        assert (job.status, job.attempt) == (JobStatus.QUEUED, 0)
    claim_one(embedded)
    (job,) = embedded.recover()
    assert job.status is JobStatus.FAILED, "after a hundred, it must be what ends the node"


@pytest.mark.parametrize("max_attempts", [1, 10])
def test_a_job_that_had_not_begun_has_its_attempt_back_when_its_worker_dies(store: Store, max_attempts: int) -> None:
    begun, waiting = store.enqueue(new_job()), store.enqueue(new_job(max_attempts=max_attempts))
    for _ in range(2):
        store.claim("w1", 2, LEASE_S)
        store.release("w1", died=True, not_started=frozenset({waiting.id}))
        assert (fetch(store, waiting.id).status, fetch(store, waiting.id).attempt) == (JobStatus.QUEUED, 0)
    assert fetch(store, begun.id).status is JobStatus.FAILED


def test_a_job_that_kills_workers_before_it_begins_ends(store: Store) -> None:
    once = store.enqueue(new_job(max_attempts=1))
    for death in range(1, 11):
        store.claim("w1", 1, LEASE_S)
        store.release("w1", died=True, not_started=frozenset({once.id}))
        assert fetch(store, once.id).status is (JobStatus.QUEUED if death < 10 else JobStatus.FAILED)


def test_a_lease_of_an_owner_that_lives_does_not_expire(store: Store, clock: Clock) -> None:
    store.enqueue(new_job())
    store.enqueue(new_job())
    claim_one(store, "here")
    strangers = claim_one(store, "elsewhere")
    clock.advance(3600)
    assert [job.id for job in store.expire(frozenset({"here", "too"}))] == [strangers.id]
    assert store.expire(frozenset({"here"})) == []
    assert len(store.expire()) == 1


def test_a_webhook_of_a_clock_that_was_ahead_is_due_after_a_restart(embedded: Store, clock: Clock) -> None:
    clock.advance(600)
    untried, tried = ended_with_webhook(embedded, 1), ended_with_webhook(embedded, 2)
    clock.advance(3000)
    embedded.settle_webhook(tried, WebhookAnswer(False, "HTTP 500", 500), 15.0)
    clock.advance(-3600)
    assert embedded.due_webhooks(10) == []
    embedded.recover()
    assert {due.job_id for due in embedded.due_webhooks(10)} == {untried.job_id, tried.job_id}


# Cancel, deadlines, ephemeral runs


def test_a_waiting_job_is_cancelled_at_once(store: Store) -> None:
    new = store.enqueue(new_job())
    outcome, job = store.request_cancel(new.id)
    assert outcome is CancelOutcome.CANCELLED
    assert job is not None
    assert job.outcome is not None
    assert (job.status, job.outcome.http_status, job.outcome.error_type) == (
        JobStatus.CANCELLED,
        499,
        "client_cancelled",
    )
    assert store.claim("w1", 1, LEASE_S) == []
    assert store.request_cancel(new.id) == (CancelOutcome.ALREADY_FINISHED, job)


def test_a_running_job_is_flagged_and_its_owner_hears_of_it(store: Store) -> None:
    store.enqueue(new_job())
    job = claim_one(store)
    assert store.renew("w1", LEASE_S) == []
    for _ in range(2):
        assert store.request_cancel(job.id)[0] is CancelOutcome.REQUESTED
    assert [flagged.id for flagged in store.renew("w1", LEASE_S)] == [job.id]
    assert store.finish(job.id, "w1", job.epoch, DONE), "a model that ends before it hears of the cancel still counts"
    assert store.request_cancel(job.id)[0] is CancelOutcome.ALREADY_FINISHED


@pytest.mark.parametrize("died", [True, False])
def test_a_flagged_job_whose_claim_ends_is_cancelled(store: Store, died: bool) -> None:
    store.enqueue(new_job(max_attempts=1))
    job = claim_one(store)
    store.request_cancel(job.id)
    (ended,) = store.release("w1", died=died)
    assert ended.status is JobStatus.CANCELLED


def test_cancelling_nobody(store: Store) -> None:
    assert store.request_cancel("nobody") == (CancelOutcome.NOT_FOUND, None)


def test_a_job_past_its_start_deadline_is_not_claimed_but_ended(store: Store, clock: Clock) -> None:
    late = store.enqueue(new_job(start_within_s=5.0))
    in_time = store.enqueue(new_job(start_within_s=50.0))
    clock.advance(5.0)
    assert [job.id for job in store.claim("w1", 2, LEASE_S)] == [in_time.id]
    (ended,) = store.expire()
    assert (ended.id, ended.status) == (late.id, JobStatus.FAILED)
    assert ended.outcome is not None
    assert (ended.outcome.http_status, ended.outcome.error_type) == (504, "request_timeout")


def test_a_restart_ends_runs_that_belonged_to_a_connection(embedded: Store) -> None:
    run = embedded.enqueue(new_job(is_ephemeral=True))
    claim_one(embedded)
    waiting_run, queued = embedded.enqueue(new_job(is_ephemeral=True)), embedded.enqueue(new_job())
    assert embedded.end_ephemeral() == 2
    assert {fetch(embedded, job.id).status for job in (run, waiting_run)} == {JobStatus.CANCELLED}
    assert fetch(embedded, queued.id).status is JobStatus.QUEUED
    assert embedded.end_ephemeral() == 0


# Counts, retention, webhooks, closing


def test_the_state_of_an_ended_job_brings_its_outcome_and_no_place(store: Store) -> None:
    store.enqueue(new_job())
    job = claim_one(store)
    store.finish(job.id, "w1", job.epoch, DONE)
    state = store.state(job.id)
    assert state is not None
    assert (state.status, state.outcome, state.position) == (JobStatus.COMPLETED, DONE, None)


def test_a_delivered_webhook_is_not_due_again_whatever_pause_is_named(store: Store, clock: Clock) -> None:
    store.enqueue(new_job(params=None, outcome=REJECTED, webhook_url="https://x.test/"))
    (due,) = store.due_webhooks(1)
    store.settle_webhook(due, WebhookAnswer(True, "HTTP 200", 200), 5.0)
    clock.advance(10)
    assert store.due_webhooks(1) == []


@pytest.mark.parametrize(("allowed", "may"), [(0, False), (1, True)])
def test_a_job_may_repeat_as_often_as_it_says(allowed: int, may: bool) -> None:
    job = transitions.created(new_job(output={"retries": {"connection_error": allowed}}), 1, 0.0)
    assert transitions.may_repeat(job) is may


def test_counts_follow_every_change(store: Store) -> None:
    for _ in range(4):
        store.enqueue(new_job())
    job = store.claim("w1", 2, LEASE_S)[0]
    store.finish(job.id, "w1", job.epoch, DONE)
    store.enqueue(new_job(params=None, outcome=REJECTED))
    assert store.counts() == {
        JobStatus.QUEUED: 2,
        JobStatus.RUNNING: 1,
        JobStatus.COMPLETED: 1,
        JobStatus.FAILED: 1,
        JobStatus.CANCELLED: 0,
    }


def test_sweep_deletes_what_has_ended_long_enough_ago(store: Store, clock: Clock) -> None:
    keep_s = 10 * PRIVATE_RETENTION_S
    old = store.enqueue(new_job(params=None, outcome=REJECTED))
    private = store.enqueue(new_job(params=None, outcome=REJECTED, store_io=False))
    waiting = store.enqueue(new_job())
    clock.advance(PRIVATE_RETENTION_S - 1)
    assert store.sweep(keep_s) == []
    clock.advance(1)
    assert store.sweep(keep_s) == [private.id]
    clock.advance(keep_s - PRIVATE_RETENTION_S)
    assert store.sweep(keep_s) == [old.id]
    assert store.get(old.id) is None
    assert store.get(waiting.id) == waiting
    assert store.counts()[JobStatus.FAILED] == 0


def test_an_ended_job_is_deleted_with_all_that_hangs_on_it(store: Store) -> None:
    new = new_job(params=None, outcome=REJECTED, webhook_url="https://x.test/", repeat=Repeat("key-1", b"body"))
    ended, waiting = store.enqueue(new), store.enqueue(new_job())
    assert store.delete(ended.id) == ended
    assert store.get(ended.id) is None
    assert store.webhook(ended.id) is None
    assert store.due_webhooks(10) == []
    assert store.counts()[JobStatus.FAILED] == 0
    assert store.enqueue(new_job(repeat=Repeat("key-1", b"body"))).id != ended.id
    assert (store.delete(ended.id), store.delete(waiting.id), store.delete("nobody")) == (None, None, None)
    assert fetch(store, waiting.id) == waiting


def test_jobs_are_found_by_words_of_the_prompt_while_they_are_kept(store: Store) -> None:
    def found(text: str) -> list[str]:
        return [job.id for job in store.find(Search(None, text=text), 10)]

    prompts = ("A violet hexagon", "violet, violets", "\ud800 lone", {"violet": 1})
    ids = [store.enqueue(new_job(input={"prompt": prompt}, params=None, outcome=REJECTED)).id for prompt in prompts]
    store.enqueue(new_job(input={"prompt": "violet secret"}, store_io=False))
    assert found("VIOLET") == [ids[1], ids[0]]
    assert found("viol hex") == ids[:1]
    assert found("lone") == [ids[2]]
    assert found("secret") == found("hexagon circle") == []
    store.delete(ids[0])
    assert found("violet") == [ids[1]]
    store.sweep(-1)
    assert found("violet") == []


def test_every_end_owes_its_webhook_once(store: Store, clock: Clock) -> None:
    hook = {"webhook_url": "https://x.test/hook"}
    finished, cancelled = store.enqueue(new_job(**hook)), store.enqueue(new_job(**hook))
    rejected = store.enqueue(new_job(params=None, outcome=REJECTED, **hook))
    store.enqueue(new_job())
    job = claim_one(store)
    assert [delivery.job_id for delivery in store.due_webhooks(10)] == [rejected.id]
    clock.advance(1)
    store.finish(job.id, "w1", job.epoch, DONE)
    clock.advance(1)
    store.request_cancel(cancelled.id)
    due = store.due_webhooks(10)
    assert [delivery.job_id for delivery in due] == [rejected.id, finished.id, cancelled.id]
    assert {(delivery.url, delivery.tries) for delivery in due} == {("https://x.test/hook", 0)}
    assert [delivery.job_id for delivery in store.due_webhooks(1)] == [rejected.id]


def ended_with_webhook(store: Store, number: int = 1, **changes: Any) -> WebhookDelivery:
    """A job that has ended and owes a webhook."""
    url = f"https://x.test/{number}"
    job = store.enqueue(new_job(params=None, outcome=REJECTED, webhook_url=url, **changes))
    delivery = store.webhook(job.id)
    assert delivery is not None
    return delivery


def test_due_webhooks_are_taken_from_every_receiver_in_turn(store: Store, clock: Clock) -> None:
    def owe(url: str) -> str:
        clock.advance(1)
        return store.enqueue(new_job(params=None, outcome=REJECTED, webhook_url=url)).id

    hanging = [owe(f"https://hangs.test/{number}") for number in range(30)]
    healthy = [owe(f"http://me:secret@Healthy.test:81/{number}") for number in range(2)]
    other = owe("https://other.test?x=/y")
    clock.advance(1)
    expected = [hanging[0], healthy[0], other, hanging[1], healthy[1], hanging[2]]
    assert [due.job_id for due in store.due_webhooks(100, 3)] == expected
    assert [due.job_id for due in store.due_webhooks(2, 3)] == expected[:2]
    for due in store.due_webhooks(100, 3):
        store.settle_webhook(due, WebhookAnswer(True, "HTTP 200", 200), None)
    assert [due.job_id for due in store.due_webhooks(100, 3)] == hanging[3:6]


def test_a_webhook_is_tried_until_delivered_or_given_up(store: Store, clock: Clock) -> None:
    first, second = ended_with_webhook(store, 1), ended_with_webhook(store, 2)
    store.settle_webhook(first, WebhookAnswer(False, "HTTP 500", 500, 0.25), next_in_s=5.0)
    store.settle_webhook(second, WebhookAnswer(False, "gone"), next_in_s=None)
    assert store.due_webhooks(10) == []
    clock.advance(5.0)
    (again,) = store.due_webhooks(10)
    assert (again.job_id, again.tries, again.note) == (first.job_id, 1, "HTTP 500")
    store.settle_webhook(again, WebhookAnswer(True, "HTTP 200", 200, 0.5), next_in_s=None)
    clock.advance(1e6)
    assert store.due_webhooks(10) == []
    delivered, given_up = store.webhook(first.job_id), store.webhook(second.job_id)
    assert delivered is not None
    assert given_up is not None
    assert (delivered.is_delivered, delivered.due_at, delivered.tries) == (True, None, 2)
    assert (given_up.is_delivered, given_up.due_at, given_up.tries) == (False, None, 1)
    assert store.webhooks(10) == [given_up, delivered]
    assert store.webhooks(1) == [given_up]


def test_every_try_is_in_the_log(store: Store, clock: Clock) -> None:
    delivery = ended_with_webhook(store)
    assert store.webhook_tries(delivery.job_id) == []
    store.settle_webhook(delivery, WebhookAnswer(False, "no answer in time", None, 15.0), next_in_s=5.0)
    clock.advance(10)
    store.settle_webhook(delivery, WebhookAnswer(True, "HTTP 204", 204, 0.5), next_in_s=None)
    assert store.webhook_tries(delivery.job_id) == [
        WebhookTry(delivery.job_id, clock.now - 25, 15.0, None, "no answer in time", "again"),
        WebhookTry(delivery.job_id, clock.now - 0.5, 0.5, 204, "HTTP 204", "delivered"),
    ]
    assert store.webhook_tries("nobody") == []


def test_the_log_of_one_webhook_is_bounded(store: Store) -> None:
    delivery, other = ended_with_webhook(store, 1), ended_with_webhook(store, 2)
    store.settle_webhook(other, WebhookAnswer(True, "other"), None)
    for number in range(TRIES_KEPT + 3):
        store.settle_webhook(delivery, WebhookAnswer(False, f"try {number}"), 1.0)
    notes = [entry.note for entry in store.webhook_tries(delivery.job_id)]
    assert notes == [f"try {number}" for number in range(3, TRIES_KEPT + 3)]
    assert len(store.webhook_tries(other.job_id)) == 1


def test_the_log_outlives_the_job_but_not_for_ever(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ended_with_webhook(store, 1), ended_with_webhook(store, 2)
    store.settle_webhook(first, WebhookAnswer(True, "HTTP 200", 200), None)
    clock.advance(1)
    store.settle_webhook(second, WebhookAnswer(True, "HTTP 200", 200), None)
    clock.advance(PRIVATE_RETENTION_S)
    store.sweep(PRIVATE_RETENTION_S)
    assert store.webhook(first.job_id) is None
    assert store.webhooks(10) == []
    assert len(store.webhook_tries(first.job_id)) == 1
    for module in (memory, outbox):
        monkeypatch.setattr(module, "LOG_ROWS", 1)
    store.sweep(PRIVATE_RETENTION_S)
    assert [len(store.webhook_tries(delivery.job_id)) for delivery in (first, second)] == [0, 1]
    clock.advance(LOG_KEPT_S)
    store.sweep(PRIVATE_RETENTION_S)
    assert store.webhook_tries(second.job_id) == []


def test_a_webhook_is_delivered_again_when_ordered(store: Store, clock: Clock) -> None:
    delivery = ended_with_webhook(store)
    store.settle_webhook(delivery, WebhookAnswer(True, "HTTP 200", 200), None)
    clock.advance(100)
    assert store.redeliver_webhook(delivery.job_id) is Redelivery.ORDERED
    (again,) = store.due_webhooks(10)
    assert (again.job_id, again.tries, again.due_at, again.is_delivered) == (delivery.job_id, 0, clock.now, False)
    store.settle_webhook(again, WebhookAnswer(False, "HTTP 500", 500), 15.0)
    assert store.redeliver_webhook(delivery.job_id) is Redelivery.ORDERED
    assert [(due.job_id, due.tries) for due in store.due_webhooks(10)] == [(delivery.job_id, 0)]
    assert len(store.webhook_tries(delivery.job_id)) == 2


def test_an_order_that_comes_during_a_try_is_not_settled_by_it(store: Store) -> None:
    delivery = ended_with_webhook(store)
    (under_way,) = store.due_webhooks(1)
    store.redeliver_webhook(delivery.job_id)
    store.settle_webhook(under_way, WebhookAnswer(True, "HTTP 200", 200), None)
    (due,) = store.due_webhooks(10)
    assert due.tries == 0
    assert len(store.webhook_tries(delivery.job_id)) == 1
    store.settle_webhook(due, WebhookAnswer(True, "HTTP 200", 200), None)
    assert store.due_webhooks(10) == []


def test_what_cannot_be_delivered_again_says_why(store: Store, clock: Clock) -> None:
    running = store.enqueue(new_job(webhook_url="https://x.test/hook"))
    without = store.enqueue(new_job(params=None, outcome=REJECTED))
    tried, untried = ended_with_webhook(store, 1, store_io=False), ended_with_webhook(store, 2, store_io=False)
    store.settle_webhook(tried, WebhookAnswer(True, "HTTP 200", 200), None)
    clock.advance(PRIVATE_RETENTION_S)
    store.sweep(10 * PRIVATE_RETENTION_S)
    ids = [running.id, without.id, tried.job_id, untried.job_id, "nobody"]
    assert [store.redeliver_webhook(job_id) for job_id in ids] == [
        Redelivery.NOT_FINISHED,
        Redelivery.NO_WEBHOOK,
        Redelivery.FORGOTTEN,
        Redelivery.NOT_FOUND,
        Redelivery.NOT_FOUND,
    ]
    assert store.due_webhooks(10) == []


def test_a_closed_store_refuses(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError):
        store.enqueue(new_job())
    with pytest.raises(StoreError):
        store.get("anything")
