"""Sleep and wake over HTTP and from the command line, with a real worker process that follows a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from server.app import create_app
from server.cli.failures import CommandError
from server.cli.main import app
from server.node import Node
from server.settings import Settings
from tests.server.api_server import eventually, listening
from tests.server.test_app_node import WORKER


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    node = Node.from_settings(Settings(data_dir=tmp_path, device="cpu,cpu"), worker_command=WORKER)
    with listening(create_app(node)) as url, httpx.Client(base_url=url, timeout=30) as client:
        eventually(lambda: len(node.workers.ready) == 2, within_s=20)
        yield client


def states(http: httpx.Client) -> list[tuple[str, list[str]]]:
    return [(worker["state"], worker["loaded"]) for worker in http.get("/health").json()["workers"]]


def test_what_sleeps_holds_nothing_and_requests_wait_for_its_waking(http: httpx.Client) -> None:
    answer = http.post("/v1/workers/sleep")
    assert [worker["state"] for worker in answer.json()["workers"]] == ["asleep", "asleep"]
    eventually(lambda: states(http) == [("asleep", [])] * 2)
    assert (http.get("/readyz").status_code, http.get("/health").json()["state"]) == (503, "asleep")
    handle = http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}).json()
    assert http.get(handle["status_url"]).json()["status"] == "IN_QUEUE"
    http.post("/v1/workers/wake")
    eventually(lambda: http.get(handle["status_url"], params={"logs": "1"}).status_code == 200, within_s=20)
    lines = [entry["message"] for entry in http.get(handle["status_url"], params={"logs": "1"}).json()["logs"]]
    assert "started" in lines, "and not: attempt 2"
    eventually(lambda: states(http) == [("ready", ["flux-shapes"])] * 2)


@pytest.mark.parametrize(
    ("change", "status"), [({"params": {"device": "cuda:7"}}, 404), ({"headers": {"origin": "https://evil.test"}}, 403)]
)
def test_only_the_operator_lets_only_known_workers_sleep(http: httpx.Client, change: dict, status: int) -> None:  # type: ignore[type-arg]
    assert http.post("/v1/workers/sleep", **change).status_code == status
    assert {state for state, _ in states(http)} == {"ready"}


def test_the_command_says_what_it_did(http: httpx.Client, tmp_path: Path) -> None:
    where = ["--url", str(http.base_url), "--data-dir", str(tmp_path)]
    asleep = CliRunner().invoke(app, ["workers", "sleep", *where, "--json"])
    assert [worker["state"] for worker in json.loads(asleep.stdout)["workers"]] == ["asleep"] * 2
    eventually(lambda: states(http) == [("asleep", [])] * 2)
    listed = CliRunner().invoke(app, ["workers", "list", *where])
    assert [line.split("  ")[2:] for line in listed.stdout.splitlines()[1:]] == [
        ["cpu", "asleep", "in memory: nothing"]
    ] * 2
    with pytest.raises(CommandError, match="No worker on device cuda:7"):
        CliRunner().invoke(app, ["workers", "wake", "--device", "cuda:7", *where], catch_exceptions=False)


def test_without_a_server_the_command_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no server runs here"):
        CliRunner().invoke(app, ["workers", "sleep", "--data-dir", str(tmp_path)], catch_exceptions=False)
