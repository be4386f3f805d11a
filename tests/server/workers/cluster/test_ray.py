"""A whole server over a real Ray cluster, of which one part after the other is killed. Run with `make test-ray`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import psutil
import pytest

from benchmarks.ray_machines import RayMachines, ray_machines
from tests.acceptance.serving import Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

APP = "fal-ai/flux/dev"
NOTICE_S = "8"
"""A raylet or a driver gives a head up after so long; 60 unless it is said."""


@pytest.fixture(scope="module")
def machines() -> Iterator[RayMachines]:
    pytest.importorskip("ray", reason="pip install -r requirements-ray.lock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", NOTICE_S)
        with ray_machines(1, 1) as made:
            yield made


@pytest.fixture(scope="module")
def server(machines: RayMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ("--cluster", machines.address, "--workers", "2")
    made = Server(tmp_path_factory.mktemp("node"), arguments, model="fake:step_ms=100")
    made.environment = {"RAY_gcs_rpc_server_reconnect_timeout_s": NOTICE_S}
    made.start().wait_ready()
    yield made
    made.close()


def until(holds: Callable[[], Any], timeout_s: float = 90.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


class Queued:
    """One request, as its caller sees it."""

    def __init__(self, server: Server, steps: int = 40, size: int = 64) -> None:
        self.server = server
        body = {"prompt": "a fox", "num_inference_steps": steps, "image_size": {"width": size, "height": size}}
        answer = httpx.post(f"{server.url}/queue/{APP}", json=body).raise_for_status().json()
        self.id = answer["request_id"]

    def status(self) -> dict[str, Any]:
        url = f"{self.server.url}/queue/fal-ai/flux/requests/{self.id}/status"
        answer: dict[str, Any] = httpx.get(url, params={"logs": "1"}).json()
        return answer

    @property
    def lines(self) -> list[str]:
        return [line["message"] for line in self.status().get("logs") or []]

    def is_drawing(self) -> bool:
        """For so long that every worker has said since whether it draws."""
        return any(line.startswith("step 12/") for line in self.lines)

    def runs_again(self) -> bool:
        return any("attempt 2" in line for line in self.lines)

    def is_completed(self) -> bool:
        status = self.status()
        assert not status.get("error"), status
        return bool(status["status"] == "COMPLETED")


def all_ready(server: Server) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = server.health()["workers"]
    return workers if len(workers) == 2 and all(worker["state"] == "ready" for worker in workers) else []


def drawing(server: Server) -> psutil.Process:
    """The worker that draws."""
    (worker,) = until(lambda: [worker for worker in server.health()["workers"] if worker["running"]])
    return psutil.Process(worker["pid"])


def test_workers_on_two_machines_draw_and_show_every_step(server: Server) -> None:
    workers = until(lambda: all_ready(server))
    raylets = {psutil.Process(worker["pid"]).parent().ppid() for worker in workers}
    assert len(raylets) == 2, "each on a machine of its own"
    request = Queued(server, steps=12, size=1024)
    until(request.is_completed)
    assert [line for line in request.lines if line.startswith("step")] == [f"step {n}/12" for n in range(1, 13)]


def test_another_takes_the_place_of_a_drained_worker_that_comes_back_nowhere(server: Server) -> None:
    until(lambda: all_ready(server))
    (node,) = httpx.get(f"{server.url}/v1/nodes").json()["nodes"]
    drained = node["workers"][0]["name"]
    process = psutil.Process(server.health()["workers"][0]["pid"])
    httpx.put(f"{server.url}/v1/drains/{quote(drained)}").raise_for_status()
    until(lambda: [worker["state"] for worker in server.health()["workers"]] == ["ready", "ready", "starting"])
    process.parent().kill()
    until(lambda: all_ready(server))
    (node,) = httpx.get(f"{server.url}/v1/nodes").json()["nodes"]
    assert drained not in [worker["name"] for worker in node["workers"]]
    until(Queued(server, steps=2).is_completed)


def test_a_killed_actor_takes_its_worker_along_and_the_request_runs_again(server: Server) -> None:
    until(lambda: all_ready(server))
    request = Queued(server)
    until(request.is_drawing)
    worker = drawing(server)
    worker.parent().kill()
    until(request.runs_again)
    until(lambda: not worker.is_running())
    until(request.is_completed)
    until(lambda: all_ready(server))


def test_a_killed_machine_is_done_without_and_used_again_when_it_is_back(server: Server, machines: RayMachines) -> None:
    until(lambda: all_ready(server))
    request = Queued(server)
    until(request.is_drawing)
    worker = drawing(server)
    raylet = worker.parent().parent()
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()
    until(request.runs_again)
    until(lambda: not worker.is_running())
    until(request.is_completed)
    assert len([w for w in server.health()["workers"] if w["state"] == "ready"]) == 1
    waits = until(lambda: [w for w in server.health()["workers"] if w["state"] == "starting" and w["stage"]])
    assert waits[0]["stage"] == "waits for a place in the cluster: 0 GPU, 1 CPU"
    machines.add(1)
    until(lambda: all_ready(server))


def test_a_killed_raylet_takes_its_workers_along_although_ray_lets_them_live(
    server: Server, machines: RayMachines
) -> None:
    until(lambda: all_ready(server))
    request = Queued(server)
    until(request.is_drawing)
    worker = drawing(server)
    worker.parent().parent().kill()
    until(request.runs_again)
    until(request.is_completed)
    until(lambda: not worker.is_running())
    machines.add(1)
    until(lambda: all_ready(server))


def test_running_workers_finish_while_the_head_is_gone_and_new_ones_come_when_it_is_back(
    server: Server, machines: RayMachines
) -> None:
    until(lambda: all_ready(server))
    request = Queued(server)
    until(request.is_drawing)
    machines.kill("head")
    until(request.is_completed)
    assert not request.runs_again()
    until(lambda: "the connection to Ray was lost" in server.output)
    later = Queued(server, steps=3)
    machines.start_head(1)
    until(later.is_completed)


def test_nothing_is_left_in_the_cluster_when_the_node_is_killed(server: Server) -> None:
    worker = psutil.Process(until(server.worker_pids)[0])
    actor = worker.parent()
    assert server.process is not None
    server.process.kill()
    until(lambda: not worker.is_running() and not actor.is_running(), 30)
