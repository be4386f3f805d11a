"""What only the durable store promises: kill -9, a full disk, one owner, upgrades, guards inside the database."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import apsw
import apsw.ext
import pytest

from server.jobs.store import sqlite
from server.jobs.store.batches import Change, Transaction
from server.jobs.store.budgets import Budget
from server.jobs.store.errors import BudgetSpentError, QueueFullError, StoreError
from server.jobs.store.job import Job, JobStatus
from server.jobs.store.opening import MIGRATIONS, why_unusable
from server.jobs.store.sqlite import SqliteStore
from server.jobs.store.writer import GroupCommit
from tests.server.stores import DONE, LEASE_S, REJECTED, new_job

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(path)
    yield opened
    opened.close()


def child(code: str, path: Path) -> subprocess.Popen[str]:
    """Another real process that runs `code` with `path` at hand."""
    program = f"from pathlib import Path\npath = Path({str(path)!r})\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def hold_back(writer: GroupCommit) -> threading.Event:
    """Keep the writer busy inside an operation until the returned event is set."""
    inside, gate = threading.Event(), threading.Event()

    def block(tx: Transaction) -> None:
        inside.set()
        gate.wait(10)

    threading.Thread(target=writer.run, args=(block,)).start()
    assert inside.wait(10)
    return gate


def wait_for_inbox(writer: GroupCommit, length: int) -> None:
    deadline = time.monotonic() + 10
    while writer._inbox.qsize() < length:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_second_process_gets_one_clear_sentence(store: SqliteStore, path: Path) -> None:
    _, errors = child("from server.jobs.store.sqlite import SqliteStore; SqliteStore(path)", path).communicate()
    assert f"StoreError: another fluxserve is using the data directory {path.parent}" in errors


def test_the_same_process_cannot_open_it_twice_either(store: SqliteStore, path: Path) -> None:
    with pytest.raises(StoreError, match="another fluxserve"):
        SqliteStore(path)


def test_everything_acknowledged_survives_kill_9(path: Path) -> None:
    writer = child(
        """
        import os, threading
        from server.jobs.store.sqlite import SqliteStore
        from tests.server.stores import DONE, new_job
        store = SqliteStore(path)
        def work(name):
            for number in range(100_000):
                job = store.enqueue(new_job(id=f"{name}-{number}"))
                os.write(1, f"queued {job.id}\\n".encode())
                for claimed in store.claim(name, 1, 30.0):
                    if number % 2 and store.finish(claimed.id, name, claimed.epoch, DONE):
                        os.write(1, f"done {claimed.id}\\n".encode())
        for name in "abcd":
            threading.Thread(target=work, args=(name,)).start()
        """,
        path,
    )
    assert writer.stdout is not None
    heard = [writer.stdout.readline() for _ in range(300)]
    writer.send_signal(signal.SIGKILL)
    heard += writer.stdout.readlines()
    writer.communicate()
    lines = [line.split() for line in heard if line.endswith("\n")]

    store = SqliteStore(path)
    for said, job_id in lines:
        job = store.get(job_id)
        assert job is not None, f"{job_id} was acknowledged and is lost"
        assert said == "queued" or job.status is JobStatus.COMPLETED
    counts = store.counts()
    assert len(store.recover()) == counts[JobStatus.RUNNING]
    waiting = store.counts()[JobStatus.QUEUED]
    assert waiting == counts[JobStatus.RUNNING] + counts[JobStatus.QUEUED]
    assert len(store.claim("new", 10**6, LEASE_S)) == waiting
    store.close()


def test_a_full_disk_is_a_store_error_and_nothing_is_half_done(path: Path) -> None:
    store = SqliteStore(path)
    running = store.enqueue(new_job(webhook_url="https://x.test/"))
    (claimed,) = store.claim("w1", 1, LEASE_S)
    (pages,) = next(store._writer._connection.execute("PRAGMA page_count"))
    (limit,) = next(store._writer._connection.execute(f"PRAGMA max_page_count = {pages + 4}"))
    assert limit == pages + 4
    big = {"prompt": "x" * 100_000}

    refused = new_job(input=big)
    with pytest.raises(StoreError, match="the disk is full"):
        store.enqueue(refused)
    assert store.get(refused.id) is None
    assert store.state(refused.id) is None
    too_big = DONE.__class__(JobStatus.COMPLETED, 200, big)
    with pytest.raises(StoreError, match="the disk is full"):
        store.finish(running.id, "w1", claimed.epoch, too_big)
    assert store.get(running.id) == claimed
    assert store.due_webhooks(10) == []
    assert store.counts()[JobStatus.RUNNING] == 1

    next(store._writer._connection.execute("PRAGMA max_page_count = 1000000"))
    assert store.enqueue(refused).id == refused.id
    assert store.finish(running.id, "w1", claimed.epoch, too_big)
    store.close()


def test_one_that_does_not_fit_takes_no_other_with_it(path: Path) -> None:
    """Group commit puts them into one transaction, so this is where a full disk could hurt the innocent."""
    store = SqliteStore(path)
    (pages,) = next(store._writer._connection.execute("PRAGMA page_count"))
    next(store._writer._connection.execute(f"PRAGMA max_page_count = {pages + 8}"))
    gate = hold_back(store._writer)
    jobs = [new_job(input={"prompt": "x" * (200_000 if number == 3 else 10)}) for number in range(6)]
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(store.enqueue, job) for job in jobs]
        wait_for_inbox(store._writer, len(jobs))
        gate.set()
        failed = [job.id for job, future in zip(jobs, futures, strict=True) if future.exception() is not None]
    assert failed == [jobs[3].id]
    assert [job.id for job in jobs if store.get(job.id) is None] == failed
    assert store.counts()[JobStatus.QUEUED] == 5
    store.close()


def test_what_arrives_during_a_commit_shares_the_next_one(path: Path) -> None:
    commits: list[int] = []
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (n)")
    writer = GroupCommit(connection, lambda changes: commits.append(len(changes)))
    gate = hold_back(writer)

    def write(tx: Transaction) -> None:
        tx.connection.execute("INSERT INTO t VALUES (1)")
        tx.changes.append((None, None))

    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(writer.run, write) for _ in range(20)]
        wait_for_inbox(writer, 20)
        gate.set()
        for future in futures:
            future.result()
    writer.close()
    assert sum(commits) == 20
    assert max(commits) == 20


def together(store: SqliteStore, *calls: Callable[[], object]) -> list[object]:
    """What they return, or raise, when one commit takes them all, in this order."""
    gate = hold_back(store._writer)

    def result(future: Future[object]) -> object:
        return future.exception() or future.result()

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = []
        for number, call in enumerate(calls, 1):
            futures.append(pool.submit(call))
            wait_for_inbox(store._writer, number)
        gate.set()
        return [result(future) for future in futures]


@pytest.mark.parametrize("limits", [{"max_queued": 3}, {"max_own": 3}])
def test_the_limit_of_the_queue_counts_what_the_same_commit_lets_in(store: SqliteStore, limits: dict[str, int]) -> None:
    store.enqueue(new_job())
    ends = together(store, *(partial(store.enqueue, new_job(), **limits) for _ in range(6)))
    assert sum(isinstance(end, QueueFullError) for end in ends) == 4
    assert store.counts()[JobStatus.QUEUED] == 3


@pytest.mark.parametrize("limits", [{"max_queued": 1}, {"max_own": 1}])
def test_the_limit_of_the_queue_counts_what_the_same_commit_lets_go(store: SqliteStore, limits: dict[str, int]) -> None:
    waiting = store.enqueue(new_job())
    submit = [partial(store.enqueue, new_job(), **limits) for _ in range(2)]
    ends = together(store, partial(store.request_cancel, waiting.id), *submit)
    assert [isinstance(end, QueueFullError) for end in ends] == [False, False, True]


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b""])
def test_a_file_that_cannot_be_opened_is_not_kept_locked(path: Path, damage: bytes) -> None:
    SqliteStore(path).close()
    if damage:
        path.write_bytes(damage)
    else:
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA user_version = 99")
        connection.close()
    with pytest.raises(StoreError):
        SqliteStore(path)
    path.unlink()
    SqliteStore(path).close()


def test_a_budget_counts_what_the_same_commit_lets_in_and_gives_back(store: SqliteStore) -> None:
    params = {"model": "flux-shapes", "width": 1024, "height": 1024, "num_images": 1}

    def submit(key: str, units: int) -> Callable[[], object]:
        budget = Budget(units, "Mpixel", "day", lambda endpoint: 1.0)
        return partial(store.enqueue, new_job(key_id=key, params=params), budgets=[budget])

    ends = together(store, *(submit("a", 3) for _ in range(4)))
    assert [isinstance(end, BudgetSpentError) for end in ends] == [False, False, False, True]
    waiting = store.enqueue(new_job(key_id="b", params=params))
    ends = together(store, partial(store.request_cancel, waiting.id), submit("b", 1), submit("b", 1))
    assert [isinstance(end, BudgetSpentError) for end in ends] == [False, False, True]


def test_two_claims_of_one_commit_keep_within_what_a_tenant_may_run(store: SqliteStore) -> None:
    for _ in range(4):
        store.enqueue(new_job(tenant="ann"))

    def claim(owner: str) -> list[Job]:
        return store.claim(owner, 4, LEASE_S, at_most=lambda tenant: 3)

    claims = together(store, partial(claim, "w1"), partial(claim, "w2"))
    assert sorted(len(jobs) for jobs in claims if isinstance(jobs, list)) == [0, 3]


def test_what_runs_when_a_store_opens_counts_towards_what_its_tenant_may_run(path: Path) -> None:
    store = SqliteStore(path)
    for _ in range(3):
        store.enqueue(new_job(tenant="ann"))
    store.claim("w1", 1, LEASE_S)
    store.close()
    store = SqliteStore(path)
    assert len(store.claim("w2", 3, LEASE_S, at_most=lambda tenant: 2)) == 1
    store.close()


def test_what_has_ended_is_counted_again_when_a_store_opens(path: Path) -> None:
    store = SqliteStore(path)
    for outcome in (REJECTED, REJECTED, None):
        store.enqueue(new_job(outcome=outcome))
    before = store.counts()
    store.close()
    store = SqliteStore(path)
    assert store.counts() == before
    assert (before[JobStatus.FAILED], before[JobStatus.QUEUED]) == (2, 1)
    store.close()


def test_no_start_and_no_sweep_reads_what_it_does_not_want(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand results are hundreds of megabytes: they must not be read to find nothing in them."""
    SqliteStore(path).close()
    connection = apsw.Connection(str(path))
    asked: list[str] = []
    monkeypatch.setattr(sqlite, "connect", lambda *_: connection)
    connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: asked.append(event["sql"]))
    store = SqliteStore(path)
    store.end_ephemeral()
    store.recover()
    store.sweep(7 * 86400.0)
    store.close()
    plans = [row[3] for sql in asked for row in plan_of(path, sql)]
    assert any("job_private" in step for step in plans)
    assert [step for step in plans if step.startswith("SCAN job") and "INDEX" not in step] == []


def plan_of(path: Path, sql: str) -> list[tuple[int, int, int, str]]:
    """How SQLite goes about a statement that reads or deletes; nothing for others."""
    if not sql.lstrip().upper().startswith(("SELECT", "DELETE", "UPDATE")):
        return []
    connection = apsw.Connection(str(path))
    values = (None,) * apsw.ext.query_info(connection, sql).bindings_count
    return list(connection.execute(f"EXPLAIN QUERY PLAN {sql}", values))


def test_promises_wait_for_the_disk_and_claims_do_not(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    commit = store._writer._on_commit

    def note(changes: list[Change]) -> None:
        levels.append(next(store._writer._connection.execute("PRAGMA synchronous"))[0])
        commit(changes)

    monkeypatch.setattr(store._writer, "_on_commit", note)
    full, normal = 2, 1
    store.enqueue(new_job())
    (job,) = store.claim("w1", 1, LEASE_S)
    store.note_begun(job.id, "w1", job.epoch)
    store.renew("w1", LEASE_S)
    store.request_cancel(job.id)
    store.finish(job.id, "w1", job.epoch, DONE)
    assert levels == [full, normal, normal, normal, full, full]


def test_a_claim_beside_a_promise_is_as_durable_as_the_promise(store: SqliteStore) -> None:
    gate = hold_back(store._writer)
    levels: list[int] = []

    def look(tx: Transaction) -> None:
        levels.append(next(tx.connection.execute("PRAGMA synchronous"))[0])

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(store._writer.run, look, is_promise) for is_promise in (False, True)]
        wait_for_inbox(store._writer, 2)
        gate.set()
        for future in futures:
            future.result()
    assert levels == [2, 2]


def test_a_broken_operation_is_the_callers_error_and_the_writer_lives(store: SqliteStore) -> None:
    with pytest.raises(TypeError):
        store.enqueue(new_job(input={"prompt": object()}))
    assert store.enqueue(new_job()).status is JobStatus.QUEUED


def test_the_database_itself_refuses_a_second_end(store: SqliteStore) -> None:
    store.enqueue(new_job())
    (job,) = store.claim("w1", 1, LEASE_S)
    assert store.finish(job.id, "w1", job.epoch, DONE)
    with pytest.raises(StoreError, match="this job has ended"):
        store._writer.run(lambda tx: tx.connection.execute("UPDATE job SET status = 'failed'").fetchall())


@pytest.mark.parametrize(
    "change", ["status = 'running'", "status = 'completed'", "status = 'paused'", "owner = 'w1'", "finished_at = 1.0"]
)
def test_the_database_itself_refuses_a_half_change(store: SqliteStore, change: str) -> None:
    job = store.enqueue(new_job())
    with pytest.raises(StoreError, match="CHECK constraint"):
        store._writer.run(lambda tx: tx.connection.execute(f"UPDATE job SET {change}").fetchall())
    assert store.get(job.id) == job


def test_what_has_not_ended_is_known_again_when_a_store_opens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SqliteStore(path)
    ids = [store.enqueue(new_job(priority=number % 2)).id for number in range(10)]
    store.claim("w1", 2, LEASE_S)
    states, counts = [store.state(job_id) for job_id in ids], store.counts()
    monkeypatch.setattr(SqliteStore, "get", None)  # a job that has not ended is known without its row
    store.close()
    store = SqliteStore(path)
    assert [store.state(job_id) for job_id in ids] == states
    assert store.counts() == counts
    store.close()


def as_written_by_version(version: int, path: Path) -> None:
    """Put the rows of a closed store into the tables of an older version."""
    newer = path.with_name("newer.db")
    path.rename(newer)
    connection = apsw.Connection(str(path))
    for script in MIGRATIONS[:version]:
        connection.execute(script.read_text())
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute("ATTACH ? AS newer", (str(newer),))
    for table in ("job", "webhook"):
        columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_info({table})"))
        connection.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM newer.{table}")
    connection.close()


def test_webhooks_of_an_older_version_keep_their_state(path: Path) -> None:
    store = SqliteStore(path)
    hooks = [new_job(params=None, outcome=REJECTED, webhook_url="https://X.test/hook") for _ in range(3)]
    for job in hooks:
        store.enqueue(job)
    store.close()
    as_written_by_version(2, path)
    connection = apsw.Connection(str(path))
    for seq, note in ((1, "HTTP 204"), (2, "HTTP 302")):
        connection.execute("UPDATE webhook SET due_at = NULL, tries = 1, note = ? WHERE job_seq = ?", (note, seq))
    connection.close()
    store = SqliteStore(path)
    delivered, given_up, due = (store.webhook(job.id) for job in hooks)
    assert delivered is not None
    assert given_up is not None
    assert (delivered.is_delivered, given_up.is_delivered, given_up.due_at) == (True, False, None)
    assert store.due_webhooks(10) == store.due_webhooks(10, per_receiver=5) == [due]
    store.close()
    connection = apsw.Connection(str(path))
    assert list(connection.execute("SELECT DISTINCT receiver FROM webhook")) == [("x.test",)]
    connection.close()


DIES_IN_A_MIGRATION = """
import os, sys
from pathlib import Path
from server.jobs.store import sqlite

connect, left = sqlite.connect, int(sys.argv[2])

def count(cursor, statement, bindings):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    return True

def watched(path, vfs):
    connection = connect(path, vfs)
    connection.exec_trace = count
    return connection

sqlite.connect = watched
sqlite.SqliteStore(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("statements", [2, 5, 9, 14, 19])
def test_kill_9_in_the_upgrade_of_an_older_store_loses_nothing(path: Path, statements: int) -> None:
    store = SqliteStore(path)
    jobs = [new_job(tenant=""), new_job(params=None, outcome=REJECTED, webhook_url="https://x.test/hook")]
    for job in jobs:
        store.enqueue(job)
    before = [store.get(job.id) for job in jobs]
    store.close()
    as_written_by_version(1, path)
    killed = subprocess.run([sys.executable, "-c", DIES_IN_A_MIGRATION, str(path), str(statements)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    store = SqliteStore(path)
    assert [store.get(job.id) for job in jobs] == before
    assert [delivery.job_id for delivery in store.due_webhooks(10)] == [jobs[1].id]
    store.close()


def test_a_file_from_a_newer_version_is_refused(path: Path) -> None:
    SqliteStore(path).close()
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer fluxserve"):
        SqliteStore(path)


def test_prompts_are_readable_by_their_owner_alone(path: Path) -> None:
    store = SqliteStore(path)
    assert {file.stat().st_mode & 0o077 for file in path.parent.glob(path.name + "*")} == {0}
    store.close()


def test_a_damaged_file_is_refused_and_the_lock_is_free_again(path: Path) -> None:
    path.write_bytes(b"this is no database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot open the database"):
            SqliteStore(path)


def test_reads_do_not_wait_for_a_write_in_progress(store: SqliteStore) -> None:
    job = store.enqueue(new_job())
    gate = hold_back(store._writer)
    assert store.get(job.id) == job
    gate.set()


def test_a_waiting_row_that_is_damaged_ends_alone(path: Path) -> None:
    store = SqliteStore(path)
    damaged, sound = store.enqueue(new_job(webhook_url="https://x.test/")), store.enqueue(new_job())
    store.close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE job SET params = '{\"model' WHERE id = ?", (damaged.id,))
    connection.close()
    store = SqliteStore(path)
    store.recover()
    assert [job.id for job in store.claim("w1", 5, LEASE_S)] == [sound.id]
    ended = store.get(damaged.id)
    assert ended is not None
    assert ended.outcome is not None
    assert (ended.outcome.http_status, ended.outcome.error) == (500, "The stored request is damaged")
    assert [due.job_id for due in store.due_webhooks(5)] == [damaged.id]
    assert store.counts()[JobStatus.FAILED] == 1
    store.close()


def test_a_file_that_is_removed_under_the_store_is_a_problem(store: SqliteStore, path: Path) -> None:
    assert store.problem is None
    path.with_name("jobs.db-wal").unlink()
    assert "jobs.db-wal was removed while in use" in str(store.problem)


def test_a_sound_store_is_told_from_a_damaged_one(path: Path) -> None:
    assert why_unusable(path) is None
    store = SqliteStore(path)
    for _ in range(200):
        store.enqueue(new_job())
    assert why_unusable(path) is None, "beside its owner, too"
    store.close()
    assert path.with_name("jobs.db-wal").stat().st_size == 0, "a backup may be put in its place"
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + bytes(8192) + whole[12288:])
    assert "is damaged" in str(why_unusable(path))
    path.write_bytes(b"no database" * 1000)
    assert "cannot be read as a database" in str(why_unusable(path))


FULL_DISK = """
import errno, subprocess
from server.jobs.store.errors import StoreError
from server.jobs.store.sqlite import SqliteStore
from tests.server.stores import DONE, new_job
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path.parent], check=True)
store = SqliteStore(path)
done, waiting = store.enqueue(new_job()), store.enqueue(new_job())
claimed, = store.claim("w1", 1, 30.0)
store.finish(done.id, "w1", claimed.epoch, DONE)
store.close()
with open(path.with_name("filler"), "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError as exc:
        assert exc.errno == errno.ENOSPC
store = SqliteStore(path)
assert store.get(done.id).outcome == DONE
assert store.state(waiting.id).position == 0
try:
    store.enqueue(new_job(input={"prompt": "x" * 100_000}))
    raise SystemExit("a full disk took a request")
except StoreError:
    path.with_name("filler").unlink()
store.recover()
assert [job.id for job in store.claim("w1", 5, 30.0)] == [waiting.id]
store.close()
print("served")
"""


def test_a_store_opens_on_a_full_disk_and_serves_what_it_has(path: Path) -> None:
    """In a mount namespace of its own, on a file system of two megabytes."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    program = f"from pathlib import Path\npath = Path({str(path)!r})\n" + FULL_DISK
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("served\n", 0), done.stderr


def test_a_large_sweep_lets_others_in_between(store: SqliteStore) -> None:
    """As one transaction, 60,000 rows held up a submit for 12 s."""
    for _ in range(1000):
        store.enqueue(new_job(params=None, outcome=REJECTED))
    sweep_some, in_between = store._sweep_some, []

    def sweep_and_submit(retention_s: float, tx: Transaction) -> list[tuple[str, str]]:
        in_between.append(pool.submit(store.enqueue, new_job()))
        return sweep_some(retention_s, tx)

    with ThreadPoolExecutor(4) as pool:
        store._sweep_some = sweep_and_submit  # type: ignore[method-assign]
        assert len(store.sweep(-1.0)) == 1000
        assert len(in_between) >= 5
        assert all(submitted.done() for submitted in in_between[:-2])
    assert store.counts()[JobStatus.FAILED] == 0
    assert store.counts()[JobStatus.QUEUED] == len(in_between)


def test_a_tenant_that_has_had_nothing_leaves_nothing_behind(store: SqliteStore) -> None:
    for number in range(20):
        store.request_cancel(store.enqueue(new_job(tenant=f"tenant-{number}")).id)
    assert not store._line._lines._tenants
