"""kill -9 of real processes under real requests: clients see a delay, and the same request id ends once."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from models.registry import TINY
from tests.acceptance.official import CLIENTS, trace
from tests.acceptance.serving import Server

APP = "fal-ai/flux"
LONG = {"prompt": "a red circle", "num_inference_steps": 50, "image_size": {"width": 256, "height": 256}}
SHORT = {"prompt": "a red circle", "num_inference_steps": 2, "image_size": {"width": 64, "height": 64}}
PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all of this: loading a worker is what takes the time, and here it is done again and again."""
    folder = tmp_path_factory.mktemp("victim")
    server = Server(folder, model=TINY.name, environment={"OMP_NUM_THREADS": "1"})
    yield server
    server.close()


@pytest.fixture
def server(victim: Server) -> Server:
    """The server, up and ready whatever the test before did to it."""
    if victim.process is None or victim.process.poll() is not None:
        victim.start()
    victim.wait_ready()
    return victim


def submit(server: Server, body: dict[str, Any]) -> str:
    answer = httpx.post(f"{server.url}/queue/{APP}/dev", json=body, timeout=10)
    answer.raise_for_status()
    return str(answer.json()["request_id"])


def status(server: Server, request_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/queue/{APP}/requests/{request_id}/status?logs=1", timeout=10)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def result(server: Server, request_id: str) -> httpx.Response:
    """The result once the request has ended."""
    until(lambda: status(server, request_id)["status"] == "COMPLETED")
    return httpx.get(f"{server.url}/queue/{APP}/requests/{request_id}", timeout=10)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def said(server: Server, request_id: str) -> list[str]:
    return [entry["message"] for entry in status(server, request_id).get("logs") or []]


def is_drawing(server: Server, request_id: str) -> bool:
    return any(message.startswith("step 3/") for message in said(server, request_id))


def test_a_killed_worker_is_a_delay_to_the_official_client(server: Server) -> None:
    client = CLIENTS["python"].start(server, "subscribe", f"{APP}/dev", LONG)
    until(lambda: server.health()["workers"][0]["steps"] >= 3)
    (worker,) = server.worker_pids()
    os.kill(worker, signal.SIGKILL)

    seen = trace(client)
    (image,) = seen.result["images"]
    assert (image["width"], image["height"]) == (256, 256)
    assert "the worker stopped; the request will run again" in seen.logs()
    assert seen.logs().count("step 3/50") == 2, "drawn twice from the start"
    (after,) = server.health()["workers"]
    assert (after["restarts"], after["last_error"]) == (1, "killed by SIGKILL")
    assert after["pid"] != worker


def test_requests_survive_kill_9_of_everything(server: Server) -> None:
    running = submit(server, LONG)
    until(lambda: is_drawing(server, running))
    waiting = [submit(server, SHORT) for _ in range(6)]
    open_run = httpx.Client(timeout=0.5)
    with pytest.raises(httpx.ReadTimeout):
        open_run.post(f"{server.url}/run/{APP}/dev", json=LONG)
    server.kill_everything()
    open_run.close()

    server.start().wait_ready()
    for request_id in [running, *waiting]:
        answer = result(server, request_id)
        assert answer.status_code == 200, answer.text
        picture = httpx.get(answer.json()["images"][0]["url"], timeout=10)
        assert picture.status_code == 200
    assert httpx.get(f"{server.url}/health", timeout=5).json()["queue"] == {"queued": 0, "running": 0}


def test_the_workers_end_with_a_killed_node(server: Server) -> None:
    node = psutil.Process(server.pid)
    children = node.children(recursive=True)
    assert children
    request_id = submit(server, LONG)
    until(lambda: is_drawing(server, request_id))
    node.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_kills_lose_nothing_and_change_no_end(server: Server) -> None:
    """A few kills of whole processes with the real engine; hundreds with a scripted one are in test_chaos."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    ids = [submit(server, {**SHORT, "num_inference_steps": dice.randint(2, 40), "seed": k}) for k in range(20)]
    ends: dict[str, dict[str, Any]] = {}
    for number in range(4):
        time.sleep(dice.uniform(0.2, 1.5))
        if number == 2:
            server.kill_everything()
            server.start()
        else:
            for pid in server.worker_pids():
                os.kill(pid, signal.SIGKILL)
        server.wait_ready()
        ids += [submit(server, {**SHORT, "seed": 100 + number})]
        ends |= {i: result(server, i).json() for i in ids if status(server, i)["status"] == "COMPLETED"}

    for number, request_id in enumerate(ids):
        answer = result(server, request_id)
        assert answer.status_code in (200, 503), f"seed {seed}: {answer.text}"
        assert request_id not in ends or ends[request_id] == answer.json(), f"seed {seed}: request {number} ended twice"
    finished = [result(server, request_id) for request_id in ids]
    assert sum(answer.status_code == 200 for answer in finished) >= len(ids) - 2, "only quarantined of two lone deaths"
    for path in (server.data_dir / "files").rglob("*.jpeg"):
        with Image.open(path) as picture:
            picture.load()
