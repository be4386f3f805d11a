"""Submits that come twice: by a key, after a broken connection, after kill -9 between the commit and the answer."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve

SUBMIT = "/queue/fal-ai/flux/dev"
BODY = b'{"prompt": "a fox"}'
ROOT = Path(__file__).parents[3]

DIES_BEFORE_IT_ANSWERS = """
import os, sys, time
from pathlib import Path
from server.jobs.store.sqlite import SqliteStore
from server.routes.fal.queue import QueueArea
from tests.server.api_node import ApiNode
from tests.server.api_server import serve

QueueArea._deliver = lambda *_: os.kill(os.getpid(), 9)
folder = Path(sys.argv[1])
with serve(ApiNode(folder, SqliteStore(folder / "jobs.db"))) as api:
    print(api.url, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"))) as served:
        yield served


def submit(api: Api, key: str | None = None, body: bytes = BODY, query: str = "") -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    return api.http.post(SUBMIT + query, content=body, headers=headers)


def submitted(api: Api, key: str | None = None) -> str:
    return str(submit(api, key).json()["request_id"])


def test_a_key_makes_a_repeated_submit_the_same_request(api: Api) -> None:
    first = submitted(api, "order-1")
    assert submitted(api, "order-1") == first
    assert len({first, submitted(api, "order-2"), submitted(api), submitted(api)}) == 4


@pytest.mark.parametrize("other", [{"body": b'{"prompt": "a cat"}'}, {"query": "?fal_webhook=https://x.test/"}])
def test_a_key_for_something_else_is_refused(api: Api, other: dict[str, Any]) -> None:
    submitted(api, "order-1")
    answer = submit(api, "order-1", **other)
    assert (answer.status_code, answer.json()["error_type"]) == (422, "idempotency_key_reused")
    assert answer.headers["x-fal-retryable"] == "false"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\tted"])
def test_an_unusable_key_is_refused(api: Api, key: str) -> None:
    assert submit(api, key).status_code == 400


def test_a_submit_whose_connection_broke_is_found_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = api.node.store
    enqueue, is_stored, goes_on = store.enqueue, threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> Any:
        job = enqueue(*arguments)
        is_stored.set()
        goes_on.wait(10)
        return job

    monkeypatch.setattr(store, "enqueue", slowly)
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        head = f"POST {SUBMIT} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-length: {len(BODY)}\r\n\r\n"
        caller.sendall(head.encode() + BODY)
        assert is_stored.wait(10)
    time.sleep(0.3)  # until the server has seen the connection close
    goes_on.set()
    eventually(lambda: list(store._read("SELECT 1 FROM submission WHERE is_undelivered", ())))
    first = submitted(api)
    assert sum(store.counts().values()) == 1
    assert submitted(api) != first, "this one was answered, so the next is another request"


def test_kill_9_between_commit_and_answer_makes_no_second_request(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIES_BEFORE_IT_ANSWERS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with pytest.raises(httpx.TransportError):
            httpx.post(url + SUBMIT, content=BODY)
        assert server.wait() == -signal.SIGKILL
    node = ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"))
    node.store.recover()  # as a node does when it starts
    with serve(node) as api:
        first = submitted(api)
        assert sum(node.store.counts().values()) == 1
        assert submitted(api) != first
