"""Synchronous runs and their event streams over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.jobs.store.job import JobStatus, Outcome
from server.routes.fal.queue import ascii_json
from tests.server.api_server import Api, eventually

RUN = "/run/fal-ai/flux/dev"


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def waiting(api: Api) -> bool:
    return api.node.store.counts().get(JobStatus.QUEUED, 0) > 0


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("path", [RUN, "/fal-ai/flux/dev", f"{RUN}/"])
def test_run_answers_with_the_output(api: Api, pool: ThreadPoolExecutor, path: str) -> None:
    answer = pool.submit(api.http.post, path, json={"prompt": "a fox", "seed": 7})
    eventually(lambda: waiting(api))
    job = api.node.claim()
    assert job.is_ephemeral
    api.node.finish(job)
    response = answer.result()
    assert response.status_code == 200
    assert response.headers["x-fal-request-id"] == job.id
    assert response.json()["seed"] == 7
    assert response.json() == api.http.get(f"/queue/fal-ai/flux/requests/{job.id}").json()


def test_a_wrong_input_is_422_at_once_and_stores_nothing(api: Api) -> None:
    response = api.http.post(RUN, json={"prompt": "x", "num_images": 9})
    assert response.status_code == 422
    assert response.json()["detail"][0]["ctx"] == {"le": 4}
    assert response.headers["x-fal-billable-units"] == "0"
    assert response.headers["x-fal-request-id"]
    assert sum(api.node.store.counts().values()) == 0


def test_no_input_is_422_not_500(api: Api) -> None:
    response = api.http.post(RUN, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "prompt"])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_other_methods_are_405(api: Api, method: str) -> None:
    assert api.http.request(method, RUN, params={"prompt": "x"}).status_code == 405


@pytest.mark.parametrize("path", ["/run/fal-ai/unknown", "/fal-ai/flux/dev/other", "/nonsense", "/run"])
def test_unknown_paths_are_404_with_a_sentence(api: Api, path: str) -> None:
    response = api.http.post(path, json={"prompt": "x"})
    assert response.status_code == 404
    assert "not found" in response.json()["detail"]


def test_a_failure_keeps_its_status(api: Api, pool: ThreadPoolExecutor) -> None:
    answer = pool.submit(api.http.post, RUN, json={"prompt": "x"})
    eventually(lambda: waiting(api))
    body = {"detail": "no memory", "error_type": "runner_server_error"}
    api.node.finish(api.node.claim(), Outcome(JobStatus.FAILED, 500, body, "no memory", "runner_server_error"))
    assert (answer.result().status_code, answer.result().json()) == (500, body)


@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream"])
def test_a_caller_that_leaves_cancels_its_run(api: Api, path: str) -> None:
    def impatient() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{api.url}{path}", json={"prompt": "x"}, timeout=0.5)

    caller = threading.Thread(target=impatient)
    caller.start()
    eventually(lambda: waiting(api))
    job = api.node.claim()
    caller.join()

    def flagged() -> bool:
        row = api.node.store.get(job.id)
        return row is not None and row.cancel_requested

    eventually(flagged)


def test_the_stream_shows_every_step_and_ends_with_the_output(api: Api, pool: ThreadPoolExecutor) -> None:
    body = {"prompt": "naïve", "seed": 3}
    answer = pool.submit(api.http.post, f"{RUN}/stream?preview_every=2", json=body)
    eventually(lambda: waiting(api))
    job = api.node.claim()
    assert job.params is not None
    assert job.params["preview_every"] == 2
    for step in (1, 2):
        eventually(lambda: api.node.live._jobs[job.id].waiting)  # the last event is out, the next is awaited
        api.node.step(job, step, preview=step == 2)
    eventually(lambda: api.node.live._jobs[job.id].waiting)
    api.node.finish(job)
    response = answer.result()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-fal-request-id"] == job.id
    assert response.content.isascii()
    assert response.text.endswith("\n\n")
    *progress, last = events_of(response)
    assert [(event["step"], event["num_inference_steps"]) for event in progress] == [(1, 28), (2, 28)]
    assert progress[0]["images"] == []
    (preview,) = progress[1]["images"]
    assert preview["url"].startswith("data:image/jpeg;base64,/9j/")
    assert last == api.http.get(f"/queue/fal-ai/flux/requests/{job.id}").json()
    assert last["prompt"] == "naïve"


def test_a_stream_that_fails_before_its_first_step_keeps_the_status(api: Api, pool: ThreadPoolExecutor) -> None:
    answer = pool.submit(api.http.post, f"{RUN}/stream", json={"prompt": "x"})
    eventually(lambda: waiting(api))
    body = {"detail": "too late", "error_type": "request_timeout"}
    api.node.finish(api.node.claim(), Outcome(JobStatus.FAILED, 504, body, "too late", "request_timeout"))
    assert (answer.result().status_code, answer.result().json()) == (504, body)
    assert answer.result().headers["x-fal-request-timeout-type"] == "user"


def test_a_stream_that_fails_later_ends_with_the_error_object(api: Api, pool: ThreadPoolExecutor) -> None:
    answer = pool.submit(api.http.post, f"{RUN}/stream", json={"prompt": "x"})
    eventually(lambda: waiting(api))
    job = api.node.claim()
    api.node.step(job, 1)
    eventually(lambda: api.node.live._jobs[job.id].waiting)
    body = {"detail": "gone", "error_type": "runner_disconnected"}
    api.node.finish(job, Outcome(JobStatus.FAILED, 503, body, "gone", "runner_disconnected"))
    assert answer.result().status_code == 200
    assert events_of(answer.result())[-1] == body


def test_ascii_json_escapes_everything_else() -> None:
    text = "naïve ☃ \U0001f600"
    data = ascii_json({"prompt": text})
    assert data.isascii()
    assert json.loads(data) == {"prompt": text}
