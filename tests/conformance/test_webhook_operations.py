"""Webhooks as an operator lives with them: a receiver that hangs, a kill -9, the log, and a delivery made again."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.acceptance.serving import COMMAND, clean_environment
from tests.conformance.conftest import StartServer
from tests.conformance.scripted import DEV, TINY, Scripted
from tests.server.receiver import Receiver, receiving

CONSTANTS = {
    "server.jobs.webhooks.POLL_S": 0.05,
    "server.jobs.webhooks.TIMEOUT_S": 600.0,
    "server.jobs.webhooks.PAUSES_S": [0.1] * 9,
}
REQUESTS = 25
"""More than one receiver's share of the deliveries under way."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as received:
        yield received


def start(start_server: StartServer) -> Scripted:
    return start_server("--allow-private-cidr", "127.0.0.0/8", constants=CONSTANTS)


def submit(server: Scripted, webhook_url: str) -> str:
    address = f"{server.url}/queue/{DEV}?fal_webhook={quote(webhook_url, safe='')}"
    answer = httpx.post(address, json={"prompt": "a fox", **TINY}, timeout=60)
    return str(answer.raise_for_status().json()["request_id"])


def command(server: Scripted, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`fluxserve webhooks ...` in a process of its own, beside the server."""
    return subprocess.run(
        [*COMMAND, "webhooks", *arguments, "--data-dir", str(server.server.data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(),
    )


def shown(server: Scripted, *arguments: str) -> dict[str, Any]:
    done = command(server, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_a_receiver_that_never_answers_holds_up_no_request_and_no_other_receiver(
    start_server: StartServer, receiver: Receiver
) -> None:
    server = start(start_server)
    with socket.create_server(("127.0.0.1", 0), backlog=REQUESTS) as deaf:  # connects, and then nothing ever
        dead_end = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        ids = [submit(server, dead_end) for _ in range(REQUESTS)]
        other = submit(server, receiver.url)
        for request_id in [*ids, other]:
            server.until_status(request_id, "COMPLETED")
        server.until(lambda: receiver.calls)
        listed = {entry["request_id"]: entry["state"] for entry in shown(server, "list", "--limit", "100")["webhooks"]}
        assert {listed[request_id] for request_id in ids} == {"pending"}
        assert server.server.stop() == 0, "nor does it hold up a stop"
    assert "Traceback" not in server.server.output


def test_a_delivery_survives_a_kill_and_is_made_again_when_ordered(
    start_server: StartServer, receiver: Receiver
) -> None:
    server = start(start_server)
    receiver.hangs = True
    request_id = submit(server, receiver.url)
    server.until(lambda: receiver.calls)
    server.server.kill_everything()
    receiver.hangs = False
    receiver.released.set()

    server.server.start().wait_ready()
    server.until(lambda: len(receiver.calls) == 2)
    assert {payload["request_id"] for payload in receiver.payloads} == {request_id}
    server.until(lambda: f"webhook of request {request_id}, try 1: HTTP 200, delivered" in server.server.output)
    done = command(server, "redeliver", request_id)
    assert (done.returncode, "goes out now" in done.stdout) == (0, True), done.stderr
    server.until(lambda: server.server.output.count("HTTP 200, delivered") == 2)
    assert receiver.payloads[2] == receiver.payloads[1]
    facts = shown(server, "list", request_id)
    assert facts["state"] == "delivered"
    assert [(entry["http_status"], entry["verdict"]) for entry in facts["log"]] == [(200, "delivered")] * 2
