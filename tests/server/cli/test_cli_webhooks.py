"""`fluxserve webhooks` beside a store that somebody else owns: what it shows, what it orders, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from server.cli import main as command
from server.http import running
from server.jobs.store.base import PRIVATE_RETENTION_S
from server.jobs.store.deliveries import WebhookAnswer
from server.jobs.store.job import NewJob
from server.jobs.store.opening import MIGRATIONS
from server.jobs.store.sqlite import SqliteStore
from tests.server.stores import REJECTED, Clock, new_job

Cli = Callable[..., tuple[int, str, str]]
URL = "https://x.test/hook?secret=1"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[SqliteStore]:
    """The store of a node that runs: it holds the file's lock for as long as the test lasts."""
    opened = SqliteStore(tmp_path / "jobs.db", clock)
    yield opened
    opened.close()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fluxserve", "webhooks", *arguments, "--data-dir", str(tmp_path)])
        code = 0
        try:
            command.main()
        except SystemExit as exc:
            code = int(exc.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def ended(**changes: Any) -> NewJob:
    return new_job(params=None, outcome=REJECTED, **({"webhook_url": URL} | changes))


def settle(store: SqliteStore, job_id: str, answer: WebhookAnswer, next_in_s: float | None = None) -> None:
    delivery = store.webhook(job_id)
    assert delivery is not None
    store.settle_webhook(delivery, answer, next_in_s)


def test_the_list_shows_the_newest_first_with_their_states(store: SqliteStore, cli: Cli) -> None:
    delivered, given_up, due = (store.enqueue(ended()).id for _ in range(3))
    store.enqueue(ended(webhook_url=None))
    settle(store, delivered, WebhookAnswer(True, "HTTP 200", 200))
    settle(store, given_up, WebhookAnswer(False, "HTTP 302", 302))
    settle(store, due, WebhookAnswer(False, "HTTP 500", 500), 45.0)
    code, out, _ = cli("list")
    head, *lines = [line.split() for line in out.splitlines()]
    assert (code, head[0]) == (0, "request")
    assert [line[0] for line in lines] == [due, given_up, delivered]
    assert lines[0][1:4] == ["next", "1970-01-12", "13:47:25Z"]
    assert [line[1] for line in lines[1:]] == ["given", "delivered"]
    facts = json.loads(cli("list", "--json", "--limit", "2")[1])["webhooks"]
    assert [(fact["request_id"], fact["state"], fact["tries"]) for fact in facts] == [
        (due, "pending", 1),
        (given_up, "given up", 1),
    ]


def test_one_request_is_shown_with_every_try(store: SqliteStore, cli: Cli, clock: Clock) -> None:
    job_id = store.enqueue(ended()).id
    settle(store, job_id, WebhookAnswer(False, "no answer in time", None, 15.0), 15.0)
    clock.advance(30)
    settle(store, job_id, WebhookAnswer(True, "HTTP 200", 200, 0.25))
    code, out, _ = cli("list", job_id)
    assert code == 0
    assert URL in out
    assert "delivered, after 2 tries" in out
    assert [line.split("  ")[-1] for line in out.splitlines()[-2:]] == ["no answer in time", "HTTP 200"]
    log = json.loads(cli("list", job_id, "--json")[1])["log"]
    assert [(entry["http_status"], entry["duration_s"], entry["verdict"]) for entry in log] == [
        (None, 15.0, "again"),
        (200, 0.25, "delivered"),
    ]


def test_an_order_is_due_at_once_in_the_store_of_the_node(store: SqliteStore, cli: Cli, tmp_path: Path) -> None:
    job_id = store.enqueue(ended()).id
    settle(store, job_id, WebhookAnswer(True, "HTTP 200", 200))
    store._clock = lambda: 4e9  # the command goes by the real time
    code, out, _ = cli("redeliver", job_id)
    assert code == 0
    assert f"goes out when a server runs on {tmp_path}, to {URL}" in out
    assert [(due.job_id, due.tries) for due in store.due_webhooks(10)] == [(job_id, 0)]
    running.write(tmp_path, running.of_this_process("http://127.0.0.1:1", None, False))
    assert "goes out now" in cli("redeliver", job_id)[1]
    facts = json.loads(cli("redeliver", job_id, "--json")[1])
    assert (facts["request_id"], facts["state"], facts["server_is_running"]) == (job_id, "pending", True)


def test_what_cannot_be_delivered_says_why(store: SqliteStore, cli: Cli, clock: Clock) -> None:
    waiting = store.enqueue(new_job(webhook_url=URL)).id
    without = store.enqueue(ended(webhook_url=None)).id
    forgotten = store.enqueue(ended(store_io=False)).id
    settle(store, forgotten, WebhookAnswer(True, "HTTP 200", 200))
    clock.advance(PRIVATE_RETENTION_S)
    store.sweep(10 * PRIVATE_RETENTION_S)
    for job_id, word in (
        (waiting, "has not ended yet"),
        (without, "named no webhook"),
        (forgotten, "no longer kept"),
        ("nobody", "no request nobody is known here"),
    ):
        code, out, err = cli("redeliver", job_id)
        assert (code, out) == (1, "")
        assert word in err
        assert err.count("\n") == 1
    assert "no longer kept" in cli("list", forgotten)[1]
    for job_id, word in ((waiting, "has not ended yet"), (without, "named no webhook"), ("nobody", "known here")):
        assert word in cli("list", job_id)[2]


def test_an_empty_list_says_so(store: SqliteStore, cli: Cli) -> None:
    assert cli("list")[:2] == (0, "no ended request has named a webhook\n")
    assert json.loads(cli("list", "--json")[1]) == {"webhooks": []}


def test_a_folder_without_a_server_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    code, _, err = cli("list")
    assert code == 3
    assert err == f"fluxserve: there is no {tmp_path}/jobs.db: no server has run with this --data-dir\n"
    assert not (tmp_path / "jobs.db").exists()


@pytest.mark.parametrize(("version", "word"), [(1, "an older"), (len(MIGRATIONS) + 1, "a newer")])
def test_another_versions_file_is_left_alone(cli: Cli, tmp_path: Path, version: int, word: str) -> None:
    SqliteStore(tmp_path / "jobs.db").close()
    connection = apsw.Connection(str(tmp_path / "jobs.db"))
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    code, _, err = cli("redeliver", "x")
    assert code == 3
    assert f"was written by {word} fluxserve" in err


def test_a_damaged_file_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"this is no database" * 1000)
    code, _, err = cli("list")
    assert code == 3
    assert err.startswith("fluxserve: cannot use the database")
    assert err.count("\n") == 1


def test_the_help_teaches(cli: Cli) -> None:
    assert "ten tries" in cli("redeliver", "--help")[1]
    assert "REQUEST_ID" in cli("list", "--help")[1]
