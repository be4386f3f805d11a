"""HTTP over a real node and a real worker process (one that draws flat colours instead of running a model)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.node import Node
from server.settings import Settings
from tests.server.api_server import eventually, listening

WORKER = (sys.executable, "-m", "tests.server.scripted_worker")
DEV = "/run/fal-ai/flux/dev"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder: Path = tmp_path_factory.mktemp("data")
    node = Node.from_settings(Settings(data_dir=folder, device="cpu"), worker_command=WORKER)
    with listening(create_app(node)) as url, httpx.Client(base_url=url, timeout=30) as client:
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=20)
        yield client


def picture(http: httpx.Client, result: dict[str, Any]) -> bytes:
    (image,) = result["images"]
    answer = http.get(image["url"])
    assert answer.headers["content-type"] == image["content_type"]
    assert len(answer.content) == image["file_size"]
    return answer.content


def test_run_answers_with_a_picture(http: httpx.Client) -> None:
    answer = http.post(DEV, json={"prompt": "a fox", "seed": 5, "image_size": "square", "output_format": "png"})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["seed"], body["prompt"], body["has_nsfw_concepts"]) == (5, "a fox", [False])
    assert (body["images"][0]["width"], body["images"][0]["height"]) == (512, 512)
    assert picture(http, body).startswith(b"\x89PNG")


def test_sync_mode_carries_the_picture(http: httpx.Client) -> None:
    body = http.post(DEV, json={"prompt": "a fox", "sync_mode": True}).json()
    assert body["images"][0]["url"].startswith("data:image/jpeg;base64,")


def test_queue_with_logs(http: httpx.Client) -> None:
    handle = http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox", "num_inference_steps": 3}).json()
    eventually(lambda: http.get(handle["status_url"]).status_code == 200, within_s=20)
    status = http.get(handle["status_url"], params={"logs": "1"}).json()
    assert status["metrics"]["inference_time"] is not None
    messages = [entry["message"] for entry in status["logs"]]
    assert [line for line in messages if line.startswith("step")] == ["step 1/3", "step 2/3", "step 3/3"]
    assert picture(http, http.get(handle["response_url"]).json()).startswith(b"\xff\xd8")


def test_the_log_says_what_was_done_otherwise_than_asked(http: httpx.Client) -> None:
    handle = http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox", "acceleration": "high"}).json()
    eventually(lambda: http.get(handle["status_url"]).status_code == 200, within_s=20)
    entries = http.get(handle["status_url"], params={"logs": "1"}).json()["logs"]
    assert [entry["message"] for entry in entries if entry["level"] == "WARN"] == ["scripted: drawn exactly"]


def test_stream_has_steps_and_previews(http: httpx.Client) -> None:
    answer = http.post(f"{DEV}/stream?preview_every=1", json={"prompt": "a fox", "num_inference_steps": 4})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1]["images"][0]["url"].startswith("http://")
    assert any(event["images"] for event in events[:-1])
    assert all(0 < event["progress"] <= 1 for event in events[:-1])


@pytest.mark.parametrize(("prompt", "status"), [("oom", 500), ("model error", 500)])
def test_a_failing_model_is_a_clean_error(http: httpx.Client, prompt: str, status: int) -> None:
    answer = http.post(DEV, json={"prompt": prompt})
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert "Traceback" not in answer.text


def test_cancel_of_a_running_request(http: httpx.Client) -> None:
    handle = http.post("/queue/fal-ai/flux/dev", json={"prompt": "hang on", "num_inference_steps": 50}).json()
    assert http.put(handle["cancel_url"]).status_code == 202
    eventually(lambda: http.get(handle["status_url"]).status_code == 200, within_s=20)
    result = http.get(handle["response_url"])
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
