"""The OpenAI facade: its requests, answers and error shape."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.registry import REGISTRY
from server.jobs.store.job import Job, JobStatus, Outcome
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


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": "gpt-image-1"}])
def test_where_only_flux2_is_served_it_draws(api: Api, pool: ThreadPoolExecutor, model: dict[str, Any]) -> None:
    object.__setattr__(api.node.served, "specs", (REGISTRY["FLUX.2-klein-4B"],))
    object.__setattr__(api.node.served, "on_demand", ())
    job, answer = begun(api, pool, **model)
    assert job.endpoint == "fal-ai/flux-2/klein/4b"
    api.node.finish(job)
    assert answer.result().status_code == 200
    named = api.http.post(PATH, json={"prompt": "a", "model": "fal-ai/flux/dev"})
    assert named.status_code == 404


def test_a_picture_in_the_answer(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool, model="fal-ai/flux/schnell", response_format="b64_json")
    assert job.endpoint == "fal-ai/flux/schnell"
    assert job.output["sync_mode"]
    image = {"url": f"data:image/png;base64,{base64.b64encode(b'pixels').decode()}", "width": 64, "height": 32}
    api.node.finish(job, Outcome(JobStatus.COMPLETED, 200, {"images": [image]}))
    body = answer.result().json()
    assert base64.b64decode(body["data"][0]["b64_json"]) == b"pixels"
    assert (body["size"], body["output_format"], body["usage"]["total_tokens"]) == ("64x32", "png", 0)


@pytest.mark.parametrize(
    ("body", "inline"),
    [
        ({}, False),
        ({"model": "dall-e-2"}, False),
        ({"quality": "hd", "style": "vivid"}, False),
        ({"model": "gpt-image-1"}, True),
        ({"model": "gpt-image-1", "response_format": "url"}, False),
        ({"output_format": "png"}, True),
        ({"quality": "auto"}, True),
        ({"background": "opaque"}, True),
        ({"moderation": "low"}, True),
        ({"output_format": None, "background": None, "moderation": None}, False),
    ],
)
def test_who_reads_b64_json_gets_it(api: Api, pool: ThreadPoolExecutor, body: dict[str, Any], inline: bool) -> None:
    job, answer = begun(api, pool, **body)
    assert (job.endpoint, job.output["sync_mode"]) == ("fal-ai/flux/dev", inline)
    api.node.finish(job)
    assert answer.result().status_code == 200


@pytest.mark.parametrize(
    ("asked", "made"), [({}, "png"), *(({"output_format": name}, name) for name in ("png", "jpeg", "webp"))]
)
def test_png_unless_another_format_is_asked_for(
    api: Api, pool: ThreadPoolExecutor, asked: dict[str, str], made: str
) -> None:
    job, answer = begun(api, pool, **asked)
    assert job.output["format"] == made
    api.node.finish(job)
    answer.result()


@pytest.mark.parametrize(
    ("asked", "quality"),
    [
        ({"output_format": "jpeg", "output_compression": 40}, 40),
        ({"output_format": "webp", "output_compression": 0}, 1),
        ({"output_format": "jpeg", "output_compression": 100}, None),
        ({"output_format": "jpeg"}, None),
        ({"output_compression": 100}, None),
    ],
)
def test_output_compression_is_the_quality_of_what_can_lose(
    api: Api, pool: ThreadPoolExecutor, asked: dict[str, Any], quality: int | None
) -> None:
    job, answer = begun(api, pool, **asked)
    assert job.output.get("quality") == quality
    api.node.finish(job)
    assert answer.result().status_code == 200


def events_of(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of each event."""
    found = re.findall(r"event: (\S+)\ndata: (.*)\n\n", answer.text)
    return [(name, json.loads(data)) for name, data in found]


def test_a_stream_shows_previews_and_ends_with_the_picture(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool, stream=True, partial_images=2, size="64x64")
    assert job.params is not None
    assert job.params["preview_every"] == 10
    for step in (10, 20):
        api.node.step(job, step, preview=True)
        time.sleep(0.2)
    image = {"url": "data:image/png;base64,cGl4ZWxz", "width": 64, "height": 64}
    api.node.finish(job, Outcome(JobStatus.COMPLETED, 200, {"images": [image]}))
    assert answer.result().headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.result())
    names = [name for name, _ in events]
    assert names == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert all(data["type"] == name for name, data in events)
    assert [data.get("partial_image_index") for _, data in events] == [0, 1, None]
    assert base64.b64decode(events[0][1]["b64_json"])[:2] == b"\xff\xd8"
    last = events[-1][1]
    assert (last["b64_json"], last["size"], last["output_format"]) == ("cGl4ZWxz", "64x64", "png")
    assert {"created_at", "quality", "background", "usage"} <= last.keys()


def test_a_stream_that_fails_before_its_first_event_has_a_status(api: Api, pool: ThreadPoolExecutor) -> None:
    wrong = api.http.post(PATH, json={"prompt": 5, "stream": True})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")
    job, answer = begun(api, pool, stream=True)
    failure = {"detail": "no memory", "error_type": "runner_server_error"}
    api.node.finish(job, Outcome(JobStatus.FAILED, 500, failure, "no memory", "runner_server_error"))
    assert (answer.result().status_code, answer.result().json()["error"]["message"]) == (500, "no memory")


def test_a_stream_that_fails_later_says_so_in_an_event(api: Api, pool: ThreadPoolExecutor) -> None:
    job, answer = begun(api, pool, stream=True, partial_images=1)
    api.node.step(job, 14, preview=True)
    time.sleep(0.2)
    failure = {"detail": "no memory", "error_type": "runner_server_error"}
    api.node.finish(job, Outcome(JobStatus.FAILED, 500, failure, "no memory", "runner_server_error"))
    name, data = events_of(answer.result())[-1]
    assert (name, data["error"]["message"]) == ("error", "no memory")


def test_models_are_found_by_name(api: Api) -> None:
    found = api.http.get("/v1/models/fal-ai/flux/dev").json()
    assert (found["id"], found["object"]) == ("fal-ai/flux/dev", "model")
    absent = api.http.get("/v1/models/fal-ai/nope")
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/images/generations", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models?limit=x", 400),
        ("GET", "/v1", 404),
    ],
)
def test_every_refusal_below_v1_has_openais_shape(api: Api, method: str, path: str, status: int) -> None:
    answer = api.http.request(method, path)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)


def test_a_wrong_key_has_openais_shape(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, api_keys=("id:secret",))) as locked:
        answer = locked.http.get("/v1/models", headers={"authorization": "Bearer wrong"})
        assert locked.http.get("/rest/nope").json().keys() == {"detail"}
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


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
        ({"n": True}, 400, "n", "int_type"),
        ({"partial_images": False, "stream": True}, 400, "partial_images", "int_type"),
        ({"size": "big"}, 400, "size", "size"),
        ({"size": "9000x9000"}, 400, "size", "image_too_large"),
        ({"size": "0x5"}, 400, "size", "greater_than"),
        ({"prompt": None}, 400, "prompt", "string_type"),
        ({"model": "stable-diffusion"}, 404, None, "model_not_found"),
        ({"background": "transparent", "output_format": "png"}, 400, "background", "background"),
        ({"background": "transparent"}, 400, "background", "background"),
        ({"output_compression": 101}, 400, "output_compression", "less_than_equal"),
        ({"output_compression": 50}, 400, "output_compression", "output_compression"),
        ({"output_compression": 50, "output_format": "png"}, 400, "output_compression", "output_compression"),
        ({"partial_images": 4}, 400, "partial_images", "less_than_equal"),
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
