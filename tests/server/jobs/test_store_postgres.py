"""What is true of the shared store alone: several nodes on one database, and a database that goes away."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from server.jobs.live import LiveJobs
from server.jobs.service import JobService
from server.jobs.store.accounts import Search
from server.jobs.store.base import Elsewhere
from server.jobs.store.batches import Transaction
from server.jobs.store.errors import InDoubtError, QueueFullError, StoreError
from server.jobs.store.job import JobStatus, Repeat
from server.jobs.store.nodes import NodeReport
from server.jobs.store.postgres import notices, session, writer
from server.jobs.store.postgres.session import MIGRATIONS
from server.jobs.store.postgres.store import HOLD_S, PostgresStore
from server.jobs.store.postgres.writer import GRACE_S, SILENT_S, PostgresTransaction
from tests.server.postgres import PostgresServer, programs, the_server
from tests.server.stores import DONE, LEASE_S, Clock, new_job, place


@pytest.fixture
def address() -> str:
    return the_server().schema()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def nodes(address: str, clock: Clock) -> Iterator[tuple[PostgresStore, PostgresStore]]:
    """Two of them, by one clock."""
    stores = PostgresStore(address, clock), PostgresStore(address, clock)
    yield stores
    for store in stores:
        store.close()


def catch_up(*stores: PostgresStore) -> None:
    """Every transaction, an empty one as well, begins with what all others have told."""
    for store in stores:
        store._writer.run(lambda tx: None, is_promise=False)


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Several nodes


def test_what_one_node_stores_the_others_know_without_reading_it(
    nodes: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = nodes
    first, second = here.enqueue(new_job()), there.enqueue(new_job())
    catch_up(here, there)
    monkeypatch.setattr(PostgresStore, "_get", None)
    assert [place(store, second.id) for store in nodes] == [1, 1]
    there.claim("w", 1, LEASE_S)
    catch_up(here)
    assert [place(store, second.id) for store in nodes] == [0, 0]
    assert here.counts() == there.counts()
    state = here.state(first.id)
    assert state is not None
    assert state.status is JobStatus.RUNNING


def test_an_idle_node_hears_of_a_submit_and_of_a_cancel_at_once(nodes: tuple[PostgresStore, PostgresStore]) -> None:
    here, there = nodes
    heard: list[Elsewhere] = []
    own: list[Elsewhere] = []
    there.listen(heard.extend)
    here.listen(own.extend)
    job = here.enqueue(new_job())
    until(lambda: heard)
    there.claim("w", 1, LEASE_S)
    here.request_cancel(job.id)
    until(lambda: len(heard) == 2)
    assert heard == [Elsewhere(job.id, JobStatus.QUEUED, False), Elsewhere(job.id, JobStatus.RUNNING, True)]
    assert own == [Elsewhere(job.id, JobStatus.RUNNING, False)], "nobody is told what it did itself"


def test_any_node_ends_and_shows_what_another_stored(nodes: tuple[PostgresStore, PostgresStore]) -> None:
    here, there = nodes
    new = here.enqueue(new_job())
    (job,) = there.claim("w", 1, LEASE_S)
    assert not here.finish(job.id, "w", job.epoch + 1, DONE)
    assert here.finish(job.id, "w", job.epoch, DONE)
    catch_up(there)
    state = there.state(new.id)
    assert state is not None
    assert (state.status, state.outcome) == (JobStatus.COMPLETED, DONE)
    assert here.delete(new.id) is not None
    catch_up(there)
    assert there.counts()[JobStatus.COMPLETED] == 0
    assert there.state(new.id) is None


def test_claims_of_several_nodes_at_once_take_every_job_once(nodes: tuple[PostgresStore, PostgresStore]) -> None:
    ids = {nodes[0].enqueue(new_job()).id for _ in range(60)}
    taken: Counter[str] = Counter()

    def claim_all(number: int) -> None:
        while jobs := nodes[number % 2].claim(f"w{number}", 2, LEASE_S):
            taken.update(job.id for job in jobs)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim_all, range(4)))
    assert taken == Counter(ids)


def test_the_limit_of_the_queue_holds_over_all_nodes(nodes: tuple[PostgresStore, PostgresStore]) -> None:
    def submit(number: int) -> bool:
        try:
            nodes[number % 2].enqueue(new_job(), max_queued=7)
        except QueueFullError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(24))) == 7


def test_turns_are_kept_over_all_nodes(nodes: tuple[PostgresStore, PostgresStore]) -> None:
    for _ in range(3):
        nodes[0].enqueue(new_job(tenant="many"))
    nodes[1].enqueue(new_job(tenant="few"))
    assert [nodes[turn % 2].claim("w", 1, LEASE_S)[0].tenant for turn in range(4)] == ["many", "few", "many", "many"]


def test_a_webhook_is_delivered_by_one_node_and_by_another_when_that_one_is_gone(
    nodes: tuple[PostgresStore, PostgresStore], clock: Clock
) -> None:
    here, there = nodes
    here.enqueue(new_job(webhook_url="https://example.com/hook"))
    (job,) = here.claim("w", 1, LEASE_S)
    here.finish(job.id, "w", job.epoch, DONE)
    (due,) = there.due_webhooks(10, 10)
    assert [here.due_webhooks(10, 10), there.due_webhooks(10, 10)] == [[], [due]]
    clock.advance(HOLD_S)
    assert here.due_webhooks(10, 10) == [due]


def test_what_a_dead_node_left_open_is_ended_by_the_others(
    nodes: tuple[PostgresStore, PostgresStore], clock: Clock
) -> None:
    dead, here = nodes
    run = dead.enqueue(new_job(is_ephemeral=True))
    unanswered = dead.enqueue(new_job(repeat=Repeat(None, b"body")))
    assert here.end_ephemeral() == 0
    assert here.enqueue(new_job(repeat=Repeat(None, b"body"))).id != unanswered.id
    dead.close()
    clock.advance(SILENT_S + 1)
    assert [job.id for job in here.expire()] == [run.id]
    assert here.enqueue(new_job(repeat=Repeat(None, b"body"))).id == unanswered.id


def test_a_node_that_dies_is_told_by_its_name_and_one_that_leaves_is_not(
    nodes: tuple[PostgresStore, PostgresStore], address: str, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    dying, here = nodes
    leaving, command = PostgresStore(address, clock), PostgresStore(address, clock)
    for name, node in {"node-1": dying, "node-2": leaving, "node-3": here}.items():
        node.note_node(NodeReport(name, None, "1", "ready", clock.now))
    leaving.forget_node("node-2")
    for gone in (dying, leaving, command):
        gone.close()
    clock.advance(SILENT_S + 1)
    here.expire()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["nodes that have not been heard of for 15 s: node-1"]
    assert [node.report.name for node in here.nodes()] == ["node-1", "node-3"]


def test_a_node_that_is_too_busy_to_ping_is_not_taken_for_dead(
    nodes: tuple[PostgresStore, PostgresStore], clock: Clock
) -> None:
    here, there = nodes
    run = there.enqueue(new_job(is_ephemeral=True))
    clock.advance(SILENT_S + 1)
    catch_up(there)
    assert here.expire() == []
    state = here.state(run.id)
    assert state is not None
    assert state.status is JobStatus.QUEUED


def test_who_asks_for_one_job_does_not_wait_for_searches(nodes: tuple[PostgresStore, PostgresStore]) -> None:
    here, _ = nodes
    job = here.enqueue(new_job())
    with ThreadPoolExecutor(10) as threads:
        searches = [threads.submit(here._search, "SELECT pg_sleep(2)", ()) for _ in range(10)]
        until(lambda: any(search.running() for search in searches))
        assert here.get(job.id) is not None
        assert not any(search.done() for search in searches)
        for search in searches:
            search.exception()


def test_leases_go_by_the_clock_of_the_database(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    store = PostgresStore(address)
    store.enqueue(new_job())
    (job,) = store.claim("w", 1, LEASE_S)
    with psycopg.connect(address) as connection:
        ((left_s,),) = connection.execute("SELECT lease_until - extract(epoch FROM now())::float8 FROM job").fetchall()
    assert LEASE_S - 10 < left_s <= LEASE_S
    assert abs(store.now() - job.created_at) < 10
    store.close()


def test_a_node_with_a_thousand_connections_open_connects_to_the_database(address: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this process may not have as many files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        store = PostgresStore(address)
        assert store.enqueue(new_job()).seq == 1
        store.close()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# The schema


def test_nodes_that_start_together_make_the_tables_once(address: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: PostgresStore(address), range(3)))
    with psycopg.connect(address) as connection:
        assert connection.execute("SELECT count(*) FROM fluxserve_schema").fetchall() == [(len(MIGRATIONS),)]
    for store in stores:
        store.close()


def test_two_schemas_of_one_database_know_nothing_of_each_other(address: str) -> None:
    stores = PostgresStore(address), PostgresStore(the_server().schema())
    stores[0].enqueue(new_job())
    catch_up(stores[1])
    assert stores[1].counts()[JobStatus.QUEUED] == 0
    for store in stores:
        store.close()


def test_a_store_of_a_newer_version_is_refused(address: str) -> None:
    PostgresStore(address).close()
    with psycopg.connect(address) as connection:
        connection.execute("INSERT INTO fluxserve_schema VALUES (999)")
    with pytest.raises(StoreError, match="written by a newer fluxserve"):
        PostgresStore(address)


def test_an_old_server_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "OLDEST", 99)
    with pytest.raises(StoreError, match=r"PostgreSQL \d+ is too old: fluxserve needs 99 or later"):
        PostgresStore(address)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("postgresql://u:secret@127.0.0.1:1/none", "the database 127.0.0.1:1/none cannot be used"),
        ("postgresql://u:secret@[::1", "the address of the store must look like postgresql://"),
    ],
)
def test_a_database_that_cannot_be_reached_ends_in_one_sentence_without_the_password(wrong: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as caught:
        PostgresStore(wrong)
    assert "secret" not in str(caught.value)


def test_a_schema_that_is_not_there_is_named(address: str) -> None:
    with pytest.raises(StoreError, match="no schema of the database's search_path exists"):
        PostgresStore(address.partition("%3D")[0] + "%3Dnowhere")


# What clients send


def test_characters_that_postgresql_has_no_text_for_are_stored_and_found(address: str) -> None:
    store = PostgresStore(address)
    prompt = "a \x00 red \ud800 circle"
    new = store.enqueue(new_job(input={"prompt": prompt}, tags={"team": "a\x00b"}))
    job = store.get(new.id)
    assert job is not None
    assert job.input == {"prompt": prompt}
    (claimed,) = store.claim("w", 1, LEASE_S)
    store.finish(claimed.id, "w", claimed.epoch, DONE)
    assert [found.id for found in store.find(Search(None, text="circ red"), 10)] == [new.id]
    store.close()


def test_a_change_that_is_too_large_to_be_told_is_looked_up(
    nodes: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = nodes
    big = here.enqueue(new_job(endpoint="e" * notices.MOST_BYTES))
    until(lambda: there.counts()[JobStatus.QUEUED] == 1)
    assert place(there, big.id) == 0
    for _ in range(100):
        here.enqueue(new_job(tenant="t" * 100))
    catch_up(there)
    assert there.counts()[JobStatus.QUEUED] == 101
    (job,) = here.claim("w", 1, LEASE_S)
    here.finish(job.id, "w", job.epoch, DONE)
    here.delete(job.id)
    catch_up(there)
    assert there.counts()[JobStatus.COMPLETED] == 0, "nothing is heard twice after the look"


# The database goes away


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL")
    started = PostgresServer(found)
    yield started
    started.remove()


def test_everything_comes_back_with_the_database(server: PostgresServer) -> None:
    store = PostgresStore(server.address)
    waiting, running = store.enqueue(new_job()), store.enqueue(new_job())
    store.claim("w", 1, LEASE_S)
    server.kill()
    calls: list[Callable[[], Any]] = [
        lambda: store.enqueue(new_job()),
        lambda: store.claim("w", 1, LEASE_S),
        lambda: store.get(waiting.id),
        lambda: store.find(Search(None), 1),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="the database"):
            call()
    until(lambda: store.problem)
    assert str(server.port) in str(store.problem)
    state = store.state(running.id)
    assert state is not None, "what has not ended is still known"
    server.start()
    until(lambda: store.problem is None)
    assert store.counts()[JobStatus.QUEUED] == 1
    assert store.counts()[JobStatus.RUNNING] == 1
    assert store.get(waiting.id) is not None
    assert store.enqueue(new_job()).seq > running.seq
    store.close()


def cut(store: PostgresStore, monkeypatch: pytest.MonkeyPatch, is_after: bool) -> None:
    """Lose the connection at the next commit, before the server has heard of it or after it has done it."""
    end = store._writer._end

    def losing(transaction: PostgresTransaction, is_promise: bool) -> None:
        monkeypatch.setattr(store._writer, "_end", end)
        if is_after:
            end(transaction, is_promise)
        transaction.session.close()
        store._writer._is_committing = True
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(store._writer, "_end", losing)


def test_a_commit_that_came_through_before_the_connection_broke_is_known(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresStore(address)
    new = store.enqueue(new_job())
    (job,) = store.claim("w", 1, LEASE_S)
    cut(store, monkeypatch, is_after=True)
    assert store.finish(job.id, "w", job.epoch, DONE), "else its pictures would be thrown away"
    ended = store.get(new.id)
    assert ended is not None
    assert ended.status is JobStatus.COMPLETED
    store.close()


def test_a_commit_that_did_not_come_through_is_an_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PostgresStore(address)
    cut(store, monkeypatch, is_after=False)
    with pytest.raises(StoreError, match="nothing was stored"):
        store.enqueue(new_job())
    until(lambda: store.problem is None)
    assert store.counts()[JobStatus.QUEUED] == 0
    store.close()


def test_who_asks_in_the_moment_the_connection_breaks_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PostgresStore(address)
    listen = store._writer._listen

    def breaking() -> None:
        monkeypatch.setattr(store._writer, "_listen", listen)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(store._writer, "_listen", breaking)
    asked = store._writer.post(lambda tx: None)
    with pytest.raises(StoreError, match="went away"):
        asked.result(5)
    until(lambda: store.problem is None)
    store.close()


def test_what_follows_a_commit_and_fails_does_not_have_it_done_again(address: str) -> None:
    """The wait for the disk is cancelled, say, or times out."""
    schema = address.partition("%3D")[2]
    name = "pg_logical_emit_message(is_transactional boolean, prefix text, content text)"
    broken = f"""CREATE FUNCTION {schema}.{name} RETURNS pg_lsn LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('{schema}.flushes') = 1 THEN RAISE 'this wait has failed'; END IF;
        RETURN pg_catalog.pg_logical_emit_message(is_transactional, prefix, content); END $$"""
    store = PostgresStore(f"{address}%2Cpg_catalog")  # in this order ours is found first
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE SEQUENCE {schema}.flushes".encode())
        connection.execute(broken.encode())
    inside, held = threading.Event(), threading.Event()
    store._writer.post(lambda tx: (inside.set(), held.wait(20)))  # so that those who come meanwhile share a transaction
    assert inside.wait(20)
    with ThreadPoolExecutor(3) as pool:
        submits = [pool.submit(store.enqueue, new_job()) for _ in range(3)]
        until(lambda: store._writer._inbox.qsize() == 3)
        held.set()
        jobs = [submit.result(30) for submit in submits]
    assert sorted(job.seq for job in jobs) == [1, 2, 3]
    assert store.counts()[JobStatus.QUEUED] == 3
    store.close()


def test_a_role_that_may_not_wait_for_the_disk_is_refused_at_the_start(address: str) -> None:
    schema = address.partition("%3D")[2]
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(
            f"CREATE FUNCTION {schema}.pg_logical_emit_message(boolean, text, text) RETURNS pg_lsn "
            "LANGUAGE plpgsql AS $$ BEGIN RAISE 'permission denied'; END $$".encode()
        )
    with pytest.raises(StoreError, match="cannot be used: permission denied"):
        PostgresStore(f"{address}%2Cpg_catalog")


def test_what_is_stored_is_acknowledged_whatever_becomes_of_the_index(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PostgresStore(address)

    def broken(changes: object) -> None:
        monkeypatch.undo()
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(store._writer, "_on_commit", broken)
    assert store.enqueue(new_job()).seq == 1
    until(lambda: store.problem is None and store.counts()[JobStatus.QUEUED] == 1)
    store.close()


def test_what_was_refused_because_nothing_answered_is_never_done(
    nodes: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = nodes
    inside, gate, new = threading.Event(), threading.Event(), new_job()
    there._writer.post(lambda tx: (inside.set(), gate.wait(20)))
    assert inside.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "PATIENCE_S", 0.1)
        with pytest.raises(StoreError, match="nothing was stored"):
            here.enqueue(new)
    gate.set()
    catch_up(here)
    assert here.get(new.id) is None


def test_a_submit_whose_end_was_not_known_is_found_when_it_comes_again(
    nodes: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = nodes
    jobs = JobService(here, LiveJobs(), 9, lambda: None, lambda job_id: None, lambda: None)
    gate, first = threading.Event(), new_job(repeat=Repeat(None, b"body"))
    insert = here._insert

    def slow(*arguments: Any) -> Any:
        gate.wait(20)
        return insert(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(here, "_insert", slow)
        patch.setattr(writer, "PATIENCE_S", 0.1)
        with pytest.raises(InDoubtError, match="whether it was stored is not known"):
            jobs.submit(first)
    gate.set()
    catch_up(here)
    catch_up(here)  # what notes that it was not answered is asked for by the first
    assert there.enqueue(new_job(repeat=Repeat(None, b"body"))).id == first.id


def test_a_close_ends_while_the_database_hangs_and_whoever_waits_is_told(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CLOSE_S", 0.2)
    store = PostgresStore(server.address)
    new = store.enqueue(new_job())
    (job,) = store.claim("w", 1, LEASE_S)
    frozen = threading.Event()
    with ThreadPoolExecutor(3) as pool, ExitStack() as until_the_end:

        def freeze(tx: Transaction) -> None:
            until_the_end.enter_context(server.frozen())
            frozen.set()
            tx.execute("SELECT 1")

        begun = pool.submit(store.transact, freeze)
        assert frozen.wait(20)
        ended, read = pool.submit(store.finish, job.id, "w", job.epoch, DONE), pool.submit(store.get, new.id)
        until(lambda: store._read._asked and store._writer._inbox.qsize() == 1)
        monkeypatch.setattr(writer, "PATIENCE_S", -writer.PING_S)
        with pytest.raises(StoreError, match="does not answer"):
            store.enqueue(new_job())
        store.close()
        for call, sentence in ((begun, "not known"), (ended, "nothing was stored"), (read, "closed|does not answer")):
            with pytest.raises(StoreError, match=sentence):
                call.result(20)


def test_a_node_that_starts_after_an_outage_takes_nothing_that_the_others_come_back_for(
    address: str, clock: Clock
) -> None:
    before = PostgresStore(address, clock)
    jobs = [before.enqueue(new_job(is_ephemeral=is_open)) for is_open in (True, False)]
    before.claim("w", 2, LEASE_S)
    clock.advance(LEASE_S + 1)  # nobody could renew anything
    fresh = PostgresStore(address, clock)
    assert (fresh.end_ephemeral(), fresh.expire()) == (0, [])
    before.renew("w", LEASE_S)
    clock.advance(GRACE_S)
    assert fresh.expire() == []
    before.close()
    clock.advance(LEASE_S)
    assert {job.id for job in fresh.expire()} == {job.id for job in jobs}
    fresh.close()


def test_a_database_that_was_frozen_expires_no_lease_at_once(
    server: PostgresServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PING_S", 0.2)
    store = PostgresStore(server.address, clock)
    store.enqueue(new_job())
    store.claim("w", 1, LEASE_S)
    clock.advance(GRACE_S + 1)
    with ThreadPoolExecutor(1) as pool, server.frozen():
        clock.advance(LEASE_S)
        expired = pool.submit(store.expire)
        time.sleep(1)
    assert expired.result(20) == []
    until(lambda: clock.advance(GRACE_S + 1) or store.expire())
    store.close()


def test_leases_do_not_expire_at_once_when_the_database_is_back(
    address: str, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Whoever holds one could not renew it meanwhile either."""
    store = PostgresStore(address, clock)
    store.enqueue(new_job())
    store.claim("w", 1, LEASE_S)
    clock.advance(LEASE_S + 1)
    cut(store, monkeypatch, is_after=True)
    catch_up(store)
    assert store.expire() == []
    clock.advance(GRACE_S)
    assert len(store.expire()) == 1
    store.close()


def freeze_in_a_transaction(store: PostgresStore, inside: threading.Event, gate: threading.Event) -> None:
    store._writer.post(lambda tx: (inside.set(), gate.wait(30)))


def freeze_with_the_lock(store: PostgresStore, inside: threading.Event, gate: threading.Event) -> None:
    take_notices = store._writer._take_notices

    def freeze() -> None:
        ((holds,),) = store._writer._session.execute(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted)"
        ).fetchall()
        if holds and not inside.is_set():
            inside.set()
            gate.wait(30)
        take_notices()

    store._writer._take_notices = freeze  # type: ignore[method-assign]
    store._writer.post(lambda tx: None)


@pytest.mark.parametrize("freeze", [freeze_in_a_transaction, freeze_with_the_lock])
def test_a_node_that_is_frozen_holds_up_the_others_for_a_while_only(
    address: str,
    monkeypatch: pytest.MonkeyPatch,
    freeze: Callable[[PostgresStore, threading.Event, threading.Event], None],
) -> None:
    monkeypatch.setattr(session, "FROZEN_S", 2)
    monkeypatch.setattr(writer, "PING_S", 0.3)
    frozen, other = PostgresStore(address), PostgresStore(address)
    inside, gate = threading.Event(), threading.Event()
    freeze(frozen, inside, gate)
    assert inside.wait(20)
    assert other.enqueue(new_job()).seq == 1
    gate.set()
    until(lambda: frozen.problem is None and frozen.counts()[JobStatus.QUEUED] == 1)
    for store in (frozen, other):
        store.close()


def test_a_frozen_node_is_cut_off_before_the_others_lose_patience() -> None:
    assert session.FROZEN_S < writer.PATIENCE_S - writer.PING_S
    assert session.FROZEN_S >= 2 * writer.PING_S, "a node that lives has spoken before"
    assert writer.SILENT_S > session.FROZEN_S + writer.PING_S, "and is taken for dead only then"
