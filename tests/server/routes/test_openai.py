"""The OpenAI facade: its requests, answers and error shape."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.jobs.store.base import Job, JobStatus, Outcome
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve

PATH = "/v1/images/generations"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


def begun(api: Api, pool: ThreadPoolExecutor, **body: Any) -> tuple[Job, Future[httpx.Response]]:
    answer = pool.submit(api.http.post, PATH, json={"prompt": "a fox"} | body)
    eventually(lambda: api.node.store.counts().get(JobStatus.QUEUED))
    return api.node.claim(), answer


def test_a_picture_by_address(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool, size="512x768", n=2, quality="hd", user="me", seed=4, model=None)
    assert job.params is not None
    assert (job.endpoint, job.params["width"], job.params["height"]) == ("fal-ai/flux/dev", 512, 768)
    assert (job.params["num_images"], job.params["seed"]) == (2, 4)
    api.node.finish(job)
    body = answer.result().json()
    assert isinstance(body["created"], int)
    assert api.http.get(body["data"][0]["url"]).status_code == 200


def test_a_picture_in_the_answer(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool, model="fal-ai/flux/schnell", response_format="b64_json")
    assert job.endpoint == "fal-ai/flux/schnell"
    assert job.output["sync_mode"]
    image = {"url": f"data:image/png;base64,{base64.b64encode(b'pixels').decode()}"}
    api.node.finish(job, Outcome(JobStatus.COMPLETED, 200, {"images": [image]}))
    assert base64.b64decode(answer.result().json()["data"][0]["b64_json"]) == b"pixels"


def test_endpoints_by_aspect_ratio_take_the_size_as_one(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool, model="fal-ai/flux-pro/v1.1-ultra", size="1920x1080")
    assert job.params is not None
    assert (job.params["width"], job.params["height"]) == (2752, 1536)
    api.node.finish(job)
    assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"n": 5}, 400, "n", "less_than_equal"),
        ({"size": "big"}, 400, "size", "size"),
        ({"size": "9000x9000"}, 400, "image_size", "image_too_large"),
        ({"size": "0x5"}, 400, "image_size.width", "greater_than"),
        ({"prompt": None}, 400, "prompt", "string_type"),
        ({"model": "dall-e-3"}, 404, None, "model_not_found"),
        ({"model": "fal-ai/flux/dev/stream"}, 404, None, "model_not_found"),
    ],
)
def test_errors_have_openais_shape(api: Api, body: dict[str, Any], status: int, param: str, code: str) -> None:
    answer = api.http.post(PATH, json={"prompt": "x"} | body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"]


def test_a_failure_is_a_server_error(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool)
    body = {"detail": "no memory", "error_type": "runner_server_error"}
    api.node.finish(job, Outcome(JobStatus.FAILED, 500, body, "no memory", "runner_server_error"))
    assert answer.result().status_code == 500
    assert answer.result().json()["error"] == {
        "message": "no memory",
        "type": "server_error",
        "param": None,
        "code": "runner_server_error",
    }


def test_malformed_json(api: Api) -> None:
    assert api.http.post(PATH, content=b"{").json()["error"]["code"] == "json_invalid"


def test_a_full_queue(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, max_queue=1)) as api:
        api.submit()
        full = api.http.post(PATH, json={"prompt": "x"})
    assert (full.status_code, full.json()["error"]["type"]) == (429, "rate_limit_error")


def test_a_caller_that_leaves_cancels(api: Api) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{api.url}{PATH}", json={"prompt": "x"}, timeout=0.5)
    eventually(lambda: api.node.store.counts().get(JobStatus.CANCELLED))
