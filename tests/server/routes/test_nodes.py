"""Nodes and workers are seen, emptied and filled again over HTTP and by commands, with a real worker process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from server.app import create_app
from server.cli import workers
from server.cli.failures import CommandError
from server.cli.main import app
from server.node import Node
from server.settings import Settings
from tests.server.api_server import Api, eventually, listening
from tests.server.test_app_node import DEV, WORKER


class Server:
    """One node with one worker, and the folder whose files let requests go on."""

    def __init__(self, http: httpx.Client, gates: Path) -> None:
        self.http = http
        self.gates = gates

    def node(self) -> dict[str, Any]:
        (node,) = self.http.get("/v1/nodes").json()["nodes"]
        return dict(node)

    def submit(self, prompt: str) -> str:
        return str(self.http.post("/queue/fal-ai/flux/dev", json={"prompt": prompt}).json()["request_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/v1/jobs/{job_id}").json())

    def holds(self, is_begun: bool) -> list[str]:
        (worker,) = self.node()["workers"]
        return [held["request_id"] for held in worker["holds"] if (held["began_at"] is not None) is is_begun]

    def open(self, gate: str) -> None:
        (self.gates / gate).touch()

    def command(self, *words: str) -> str:
        ran = CliRunner().invoke(app, [*words, "--url", str(self.http.base_url)], catch_exceptions=False)
        return ran.stdout.strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, gates = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("gates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRIPTED_GATES", str(gates))
        node = Node.from_settings(Settings(data_dir=folder, device="cpu"), worker_command=WORKER)
        with listening(create_app(node, 8000)) as url, httpx.Client(base_url=url, timeout=30) as http:
            eventually(lambda: http.get("/readyz").status_code == 200, within_s=20)
            yield Server(http, gates)


def test_everybody_is_seen_with_what_runs(server: Server) -> None:
    job_id = server.submit("wait seen")
    eventually(lambda: server.holds(is_begun=True) == [job_id], within_s=10)
    node = server.node()
    assert (node["url"], node["silent"], node["rest"]) == ("http://127.0.0.1:8000", False, None)
    eventually(lambda: server.http.get("/health").json()["nodes"][0]["workers"][0]["holds"] == 1)
    assert job_id not in server.http.get("/health").text
    first, worker, run = server.command("workers", "list").splitlines()
    assert first.startswith(f"{node['name']}  ready  http://127.0.0.1:8000")
    assert worker == f"  {node['name']}/0  cpu  ready  in memory: flux-shapes"
    assert run.startswith(f"    {job_id}  runs since 20")
    server.open("seen")
    eventually(lambda: server.job(job_id)["status"] == "completed", within_s=10)


def test_a_drained_worker_ends_what_it_has_begun_and_hands_the_rest_back(server: Server) -> None:
    begun, ahead = server.submit("wait begun"), server.submit("hold ahead")
    eventually(lambda: (server.holds(is_begun=True), server.holds(is_begun=False)) == ([begun], [ahead]), within_s=10)
    name = server.node()["workers"][0]["name"]
    assert server.command("drain", name, "--timeout", "0") == f"{name}: draining"
    eventually(lambda: server.holds(is_begun=False) == [], within_s=10)
    handed_back = [("running", 1), ("queued", 0)]  # in the store a commit after the worker has let go of it
    eventually(lambda: [(job["status"], job["attempts"]) for job in map(server.job, (begun, ahead))] == handed_back)
    with pytest.raises(CommandError, match="1 requests, 0 open calls after"):
        server.command("drain", name, "--timeout", "0.01")
    server.open("begun")
    assert json.loads(server.command("drain", name, "--json"))["state"] == "drained"
    assert (server.job(begun)["status"], server.job(ahead)["status"]) == ("completed", "queued")
    server.command("drain", name, "--undo")
    server.open("ahead")
    eventually(lambda: server.job(ahead)["status"] == "completed", within_s=10)
    assert server.job(ahead)["attempts"] == 1


def test_a_drained_node_is_not_ready_and_waits_for_open_calls(server: Server) -> None:
    name = server.node()["name"]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(server.http.post, DEV, json={"prompt": "wait call"})
        eventually(lambda: len(server.holds(is_begun=True)) == 1, within_s=10)
        server.command("drain", name, "--timeout", "0")
        assert server.http.get("/readyz").status_code == 503
        eventually(lambda: server.node()["callers"] == 1)
        assert server.http.get("/health").json()["state"] == "draining"
        later = server.submit("a fox")
        server.open("call")
        assert server.command("drain", name) == f"{name}: drained"
        assert call.result().status_code == 200
    assert server.job(later)["status"] == "queued"
    server.command("drain", name, "--undo")
    eventually(lambda: server.job(later)["status"] == "completed", within_s=10)
    assert server.http.get("/readyz").status_code == 200


def test_a_running_request_is_taken_from_its_worker_and_ends_once(server: Server) -> None:
    job_id = server.submit("wait taken")
    eventually(lambda: server.holds(is_begun=True) == [job_id], within_s=10)
    assert server.command("jobs", "requeue", job_id).startswith(f"{job_id}: ")
    eventually(lambda: server.job(job_id)["attempts"] == 2 and server.holds(is_begun=True) == [job_id], within_s=10)
    server.open("taken")
    eventually(lambda: server.job(job_id)["status"] == "completed", within_s=10)
    assert "taken from its worker by the operator" in server.job(job_id)["logs"]


def test_a_failed_request_is_asked_for_anew_and_keeps_its_end(server: Server) -> None:
    failed = server.submit("model error")
    eventually(lambda: server.job(failed)["status"] == "failed", within_s=10)
    again = json.loads(server.command("jobs", "requeue", failed, "--json"))
    assert again["of"] == failed
    assert again["request_id"] != failed
    eventually(lambda: server.job(again["request_id"])["status"] == "failed", within_s=10)
    assert server.job(failed)["status"] == "failed"


def test_what_has_its_pictures_or_is_unknown_is_not_requeued(server: Server) -> None:
    done = server.submit("a fox")
    eventually(lambda: server.job(done)["status"] == "completed", within_s=10)
    with pytest.raises(CommandError, match=f"{done} runs here, failed.*No request nobody runs"):
        server.command("jobs", "requeue", done, "nobody")


@pytest.mark.parametrize("options", [(), ("--undo",)])
def test_a_name_that_is_nobodys_is_told_with_those_there_are(server: Server, options: tuple[str, ...]) -> None:
    name = server.node()["name"]
    with pytest.raises(CommandError) as caught:
        server.command("drain", "nobody/7", *options)
    assert str(caught.value) == f"No node and no worker is called nobody/7; there are {name}, {name}/0"
    assert caught.value.code == 1


def test_programs_elsewhere_see_no_nodes_of_an_open_server(api: Api) -> None:
    elsewhere = {"host": "fluxserve.example"}
    assert api.http.get("/v1/nodes", headers=elsewhere).status_code == 403
    assert api.http.put("/v1/drains/here", headers=elsewhere).status_code == 403


def test_what_a_silent_node_holds_is_said_to_be_of_then() -> None:
    run = {"request_id": "r1", "began_at": "2026-11-27T19:30:44.1", "step": 5, "num_steps": 10}
    worker = {"name": "n/0", "device": "cpu", "rest": None, "state": "ready", "loaded": ["m"], "holds": [run]}
    node = {"name": "n", "silent": True, "seen_s": 132.4, "url": "http://n", "version": "0.1.0", "callers": 0}
    first, *_ = workers._node_lines(node | {"workers": [worker]})
    assert first == "n  silent for 132 s (below: as it was then)  http://n  0.1.0"
