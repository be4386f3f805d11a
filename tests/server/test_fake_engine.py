"""`--model fake:` through a whole server: what poison, hangs and shortage of memory do to the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.node import Node
from server.settings import Settings
from tests.server.api_server import eventually, listening

DEV = "/queue/fal-ai/flux/dev"
BODY = {"image_size": {"width": 64, "height": 64}, "num_inference_steps": 4}


@contextmanager
def served(folder: Path, model: str, **settings: Any) -> Iterator[httpx.Client]:
    node = Node.from_settings(Settings(data_dir=folder, models=(model,), device="cpu", **settings))
    with listening(create_app(node)) as url, httpx.Client(base_url=url, timeout=30) as http:
        eventually(lambda: http.get("/readyz").status_code == 200, within_s=20)
        yield http


def submit(http: httpx.Client, prompt: str = "a fox", **more: Any) -> dict[str, Any]:
    answer = http.post(DEV, json=BODY | {"prompt": prompt} | more)
    assert answer.status_code == 200, answer.text
    handle: dict[str, Any] = answer.json()
    return handle


def ends(http: httpx.Client, *handles: dict[str, Any]) -> list[int]:
    """The HTTP status of each result, once all have ended."""
    for handle in handles:
        eventually(lambda handle=handle: http.get(handle["status_url"]).status_code == 200, within_s=20)
    return [http.get(handle["response_url"]).status_code for handle in handles]


@pytest.mark.parametrize("fault", ["fail", "oom", "crash", "hang"])
def test_one_bad_request_of_eight_ends_alone(tmp_path: Path, fault: str) -> None:
    with served(tmp_path, "fake:step_ms=2", hang_s=0.7) as http:
        handles = [submit(http, f"a fox [[{fault}]]" if number == 3 else "a fox") for number in range(8)]
        statuses = ends(http, *handles)
        restarts = http.get("/health").json()["workers"][0]["restarts"]
    assert statuses[3] in (500, 503)
    assert statuses[:3] + statuses[4:] == [200] * 7
    assert restarts <= 3


def test_a_worker_that_dies_every_few_requests_loses_none(tmp_path: Path) -> None:
    with served(tmp_path, "fake:step_ms=1:crash=5") as http:
        statuses = ends(http, *(submit(http) for _ in range(12)))
        restarts = http.get("/health").json()["workers"][0]["restarts"]
    assert statuses == [200] * 12
    assert restarts >= 2


def test_endpoints_with_pictures_answer_too(tmp_path: Path) -> None:
    with served(tmp_path, "fake:step_ms=0") as http:
        drawn = http.post("/run/fal-ai/flux/dev", json=BODY | {"prompt": "a fox", "sync_mode": True}).json()
        address = drawn["images"][0]["url"]
        edited = http.post("/run/fal-ai/flux-kontext/dev", json={"prompt": "bluer", "image_url": address})
        refused = http.post("/run/fal-ai/flux/dev", json=BODY | {"prompt": "a fox [[explode]]"})
    assert edited.status_code == 200, edited.text
    assert refused.status_code == 422
    assert "explode" in refused.json()["detail"][0]["msg"]


def test_what_cannot_start_within_its_own_limit_is_refused_if_the_operator_wants_it(tmp_path: Path) -> None:
    with served(tmp_path, "fake:step_ms=40:batch=1", reject_late=True) as http:
        handles = [submit(http) for _ in range(40)]
        eventually(lambda: http.get(handles[9]["status_url"]).status_code == 200, within_s=20)
        before = http.get("/health").json()["queue"]["queued"]
        refused = http.post(DEV, json=BODY | {"prompt": "late"}, headers={"X-Fal-Request-Timeout": "0.2"})
        hurried = http.post(DEV, json=BODY | {"prompt": "late"}, headers={"X-Fluxserve-Deadline": "0.2"})
        patient = http.post(DEV, json=BODY | {"prompt": "patient"}, headers={"X-Fal-Request-Timeout": "3600"})
        assert http.get("/health").json()["queue"]["queued"] <= before + 1
    for answer in (refused, hurried):
        assert (answer.status_code, answer.json()["error_type"]) == (429, "concurrent_requests_limit")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["x-fal-retryable"] == "true"
    assert patient.status_code == 200


def test_without_that_it_waits(tmp_path: Path) -> None:
    with served(tmp_path, "fake:step_ms=20:batch=1") as http:
        handles = [submit(http) for _ in range(20)]
        eventually(lambda: http.get(handles[9]["status_url"]).status_code == 200, within_s=20)
        late = http.post(DEV, json=BODY | {"prompt": "late"}, headers={"X-Fal-Request-Timeout": "0.2"})
        assert late.status_code == 200
        assert ends(http, late.json()) == [504]
