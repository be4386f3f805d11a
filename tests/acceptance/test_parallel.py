"""`--parallel 2`: one worker of two processes draws what one draws, and the death of either is a delay."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.registry import REGISTRY
from pipelines.oneshot import generate
from pipelines.protocol.params import GenerationParams
from tests.acceptance.serving import Server
from tests.acceptance.test_recovery import said, status, until

ASKED = {"prompt": "three blue squares", "seed": 5, "num_inference_steps": 4, "acceleration": "none"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ("--device", "cpu", "--parallel", "2")
    server = Server(tmp_path_factory.mktemp("pair"), flags, {"OMP_NUM_THREADS": "1"}).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def submit(server: Server, body: dict[str, Any]) -> str:
    answer = httpx.post(f"{server.url}/queue/fal-ai/flux/dev", json=body, timeout=10).raise_for_status()
    return str(answer.json()["request_id"])


def drawn(server: Server, request_id: str) -> NDArray[np.int16]:
    until(lambda: status(server, request_id)["status"] == "COMPLETED")
    found = httpx.get(f"{server.url}/queue/fal-ai/flux/requests/{request_id}", timeout=10).raise_for_status().json()
    file = httpx.get(found["images"][0]["url"], timeout=10)
    return np.asarray(Image.open(BytesIO(file.content)).convert("RGB")).astype(np.int16)


def follower(server: Server) -> psutil.Process:
    """The second process of the worker."""
    (worker,) = server.worker_pids()
    (found,) = (child for child in psutil.Process(worker).children() if "--rank" in child.cmdline())
    return found


def alone(width: int, height: int) -> NDArray[np.int16]:
    """The same picture by an engine in this process."""
    spec = REGISTRY["flux-shapes"]
    params = GenerationParams(spec.name, ASKED["prompt"], width, height, 4, 3.5, 5)
    (picture,) = generate(spec, params, device="cpu").pictures
    return np.frombuffer(picture.pixels, np.uint8).reshape(height, width, 3).astype(np.int16)


def test_two_processes_draw_the_pictures_of_one(pair: Server) -> None:
    (worker,) = pair.health()["workers"]
    assert worker["device"] == "cpu,cpu"
    before = follower(pair).cpu_times().user
    sizes = (256, 192), (128, 128)
    bodies = [ASKED | {"image_size": {"width": w, "height": h}, "output_format": "png"} for w, h in sizes]
    together = [submit(pair, body) for body in bodies]
    for size, request_id in zip(sizes, together, strict=True):
        assert np.abs(drawn(pair, request_id) - alone(*size)).max() <= 1
    assert follower(pair).cpu_times().user > before, "the second did nothing"


def test_a_death_of_the_second_process_is_a_delay(pair: Server) -> None:
    second = follower(pair)
    second.suspend()  # so that the picture cannot be done before the kill
    request_id = submit(pair, ASKED | {"image_size": {"width": 256, "height": 256}})
    until(lambda: status(pair, request_id)["status"] == "IN_PROGRESS")
    second.kill()

    assert drawn(pair, request_id).shape == (256, 256, 3)
    assert "the worker stopped; the request will run again" in said(pair, request_id)
    (after,) = pair.health()["workers"]
    assert (after["restarts"], after["state"]) == (1, "ready")
    assert after["last_error"] == "the process that shares steps on cpu ended (status -9)"
