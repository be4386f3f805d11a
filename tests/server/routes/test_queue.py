"""Submit, status, status stream, result and cancel over real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.jobs.store.job import JobStatus, Outcome
from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import METRICS, ApiNode
from tests.server.api_server import Api, eventually, serve

APP = "/queue/fal-ai/flux"


def status(api: Api, job_id: str, query: str = "") -> httpx.Response:
    return api.http.get(f"{APP}/requests/{job_id}/status{query}")


def events_of(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


# Submit


def test_submit_has_the_seven_fields(api: Api) -> None:
    answer = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"})
    body = answer.json()
    job_id = body["request_id"]
    base = f"{api.url}/queue/fal-ai/flux/requests/{job_id}"
    assert body == {
        "status": "IN_QUEUE",
        "request_id": job_id,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
        "queue_position": 0,
        "gateway_request_id": job_id,
    }
    assert answer.headers["x-fal-request-id"] == job_id
    assert api.submit() != job_id


def test_submit_decides_everything_before_it_answers(api: Api) -> None:
    job = api.node.store.get(api.submit(num_inference_steps=3, output_format="png"))
    assert job is not None
    assert job.params is not None
    assert job.params["num_inference_steps"] == 3
    assert isinstance(job.params["seed"], int)
    assert job.output == {"format": "png", "sync_mode": False, "ttl_s": None}
    assert job.input == {"prompt": "a fox", "num_inference_steps": 3, "output_format": "png"}


def test_headers_and_query_reach_the_store(api: Api) -> None:
    answer = api.http.post(
        "/queue/fal-ai/flux/dev?fal_webhook=https%3A%2F%2Fx.test%2Fh",
        json={"prompt": "x"},
        headers={
            "x-fal-queue-priority": "low",
            "x-fal-request-timeout": "30.0",
            "x-fal-no-retry": "1",
            "x-fal-store-io": "0",
        },
    )
    job = api.node.store.get(answer.json()["request_id"])
    assert job is not None
    assert (job.priority, job.max_attempts, job.store_io) == (1, 1, False)
    assert job.webhook_url == "https://x.test/h"
    assert job.base_url == api.url
    assert job.start_deadline == pytest.approx(job.created_at + 30)


def test_a_webhook_inside_is_refused_before_anything_is_stored(api: Api) -> None:
    for hook in ("http://127.0.0.1:9/x", "http://localhost/x", "http://10.1:8000/"):
        for input_ in ({"prompt": "x"}, {"num_inference_steps": 99}):
            answer = api.http.post("/queue/fal-ai/flux/dev", params={"fal_webhook": hook}, json=input_)
            assert answer.status_code == 422
            (problem,) = answer.json()["detail"]
            assert problem["loc"] == ["query", "fal_webhook"]
            assert "--allow-private-cidr" in problem["msg"]
            assert answer.headers["x-fal-retryable"] == "false"
    assert sum(api.node.store.counts().values()) == 0


def test_a_rejected_input_is_accepted_and_answers_at_the_result(api: Api) -> None:
    job_id = api.submit(num_inference_steps=99)
    answer = status(api, job_id)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["error_type"], body["logs"]) == ("COMPLETED", "less_than_equal", None)
    assert "less than or equal to 50" in body["error"]
    for _ in range(2):
        result = api.http.get(f"{APP}/requests/{job_id}")
        assert result.status_code == 422
        (entry,) = result.json()["detail"]
        assert entry["loc"] == ["body", "num_inference_steps"]
        assert (result.headers["x-fal-retryable"], result.headers["x-fal-billable-units"]) == ("false", "0")
        assert result.headers["x-fal-request-id"] == job_id


def test_an_empty_body_is_an_empty_input(api: Api) -> None:
    answer = api.http.post("/queue/fal-ai/flux/dev", headers={"content-type": "application/json"})
    assert answer.status_code == 200
    result = api.http.get(answer.json()["response_url"])
    assert result.json()["detail"][0]["type"] == "missing"


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": NaN}', b"\xff\xfe", b"[" * 5000])
def test_what_is_no_json_object_is_refused_at_once(api: Api, content: bytes) -> None:
    answer = api.http.post("/queue/fal-ai/flux/dev", content=content)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] in ("json_invalid", "model_attributes_type")
    assert answer.headers["x-fal-request-id"]
    assert sum(api.node.store.counts().values()) == 0


@pytest.mark.parametrize("coding", ["gzip", "BR", "x-unheard-of"])
def test_a_compressed_body_is_refused_by_name(api: Api, coding: str) -> None:
    answer = api.http.post("/queue/fal-ai/flux/dev", content=b"\x1f\x8b", headers={"content-encoding": coding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
    assert "send the body as it is" in answer.json()["detail"]
    assert api.http.post("/queue/fal-ai/flux/dev", content=b"{}", headers={"content-encoding": "identity"}).is_success


def test_a_body_beyond_the_limit_is_413(api: Api) -> None:
    answer = api.http.post("/queue/fal-ai/flux/dev", content=b" " * (32 * 2**20 + 1))
    assert answer.status_code == 413
    assert "33554432" in answer.json()["detail"]


def test_a_full_queue_is_429_and_stores_nothing(api: Api) -> None:
    api.submit()
    answer = api.http.post("/queue/fal-ai/flux/dev?fal_max_queue_length=0", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error_type"]) == (429, "concurrent_requests_limit")
    assert answer.headers["x-fal-needs-retry"] == "1"
    assert api.node.store.counts()[JobStatus.QUEUED] == 1


def test_a_bad_timeout_is_a_bad_request(api: Api) -> None:
    answer = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "x"}, headers={"x-fal-request-timeout": "abc"})
    assert (answer.status_code, answer.json()["error_type"]) == (400, "bad_request")
    assert answer.headers["x-fal-error-type"] == "bad_request"


def test_a_submit_is_answered_without_another_question_to_the_store(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stored: nothing that comes after may make its answer one that clients repeat."""
    for question in ("state", "get"):
        monkeypatch.setattr(api.node.store, question, None)
    answer = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["queue_position"]) == (200, 0)


@pytest.mark.parametrize("path", ["/fal-ai/unknown", "/fal-ai/flux/unknown", "/fal-ai/flux/dev/realtime2"])
def test_unknown_endpoints_are_404_with_a_sentence(api: Api, path: str) -> None:
    answer = api.http.post(f"/queue{path}", json={})
    assert answer.status_code == 404
    assert "not found" in answer.json()["detail"]
    assert answer.headers["x-fal-request-id"]


@pytest.mark.parametrize("area", ["queue", "run"])
def test_a_missing_checkpoint_is_404_before_the_input_is_judged(api: Api, area: str) -> None:
    answer = api.http.post(f"/{area}/fal-ai/flux-2/edit", json={"prompt": "no image_urls"})
    assert answer.status_code == 404
    assert "--model FLUX.2-dev" in answer.json()["detail"]
    assert sum(api.node.store.counts().values()) == 0


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_wrong_methods_are_405(api: Api, method: str) -> None:
    answer = api.http.request(method, "/queue/fal-ai/flux/dev")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")


# Status


def test_status_while_waiting_running_and_done(api: Api) -> None:
    first, second = api.submit(), api.submit()
    waiting = status(api, second)
    assert waiting.status_code == 202
    assert (waiting.json()["status"], waiting.json()["queue_position"]) == ("IN_QUEUE", 1)
    job = api.node.claim()
    assert job.id == first
    assert status(api, second).json()["queue_position"] == 0
    api.node.step(job, 7)
    running = status(api, first)
    assert running.status_code == 202
    assert (running.json()["status"], running.json()["logs"], running.json()["metrics"]) == ("IN_PROGRESS", None, {})
    api.node.finish(job)
    done = status(api, first)
    assert done.status_code == 200
    assert (done.json()["status"], done.json()["logs"]) == ("COMPLETED", None)
    assert done.json()["metrics"] == METRICS
    assert "error" not in done.json()
    for answer in (waiting, running, done):
        assert {"status", "request_id", "response_url", "status_url", "cancel_url"} <= set(answer.json())


@pytest.mark.parametrize("query", ["?logs=1", "?logs=true", "?logs=0&logs=1"])
def test_logs_on_request(api: Api, query: str) -> None:
    job_id = api.submit()
    job = api.node.claim()
    api.node.step(job, 7)
    (entry,) = status(api, job_id, query).json()["logs"]
    assert entry["message"] == "step 7/28"
    assert set(entry) == {"message", "level", "source", "timestamp", "labels"}
    assert entry["labels"] == {"level": "INFO", "source": "USER"}
    api.node.finish(job)
    assert status(api, job_id, query).json()["logs"] == [entry]


@pytest.mark.parametrize(
    "path",
    [
        "/queue/fal-ai/flux/requests/{id}/status",
        "/queue/fal-ai/flux/requests/{id}/status/",
        "/queue/fal-ai/flux/dev/requests/{id}/status",
        "/queue/fal-ai/flux/dev/requests/{id}/status/",
        "/fal-ai/flux/requests/{id}/status",
        "/run/fal-ai/flux/requests/{id}/status",
    ],
)
def test_every_path_form_answers_alike(api: Api, path: str) -> None:
    job_id = api.submit()
    answer = api.http.get(path.format(id=job_id))
    assert answer.status_code == 202
    assert answer.json()["request_id"] == job_id


@pytest.mark.parametrize("tail", ["", "/status", "/status/stream", "/response"])
def test_unknown_ids_and_foreign_apps_are_404(api: Api, tail: str) -> None:
    job_id = api.submit()
    for path in (f"{APP}/requests/nobody{tail}", f"/queue/fal-ai/flux-pro/requests/{job_id}{tail}"):
        answer = api.http.get(path)
        assert answer.status_code == 404
        assert (answer.json()["status"], answer.json()["detail"]) == ("NOT_FOUND", "Request not found")
        assert answer.headers["x-fal-request-id"]


def test_unknown_tails_are_404(api: Api) -> None:
    answer = api.http.get(f"{APP}/requests/{api.submit()}/nonsense")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Path /nonsense not found"})


# Status stream


def test_the_stream_tells_every_state_and_each_log_line_once(api: Api) -> None:
    job_id = api.submit()
    with api.http.stream("GET", f"{APP}/requests/{job_id}/status/stream?logs=1") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-fal-request-id"] == job_id
        stream = events_of(response)
        assert next(stream)["status"] == "IN_QUEUE"
        job = api.node.claim()
        assert next(stream)["status"] == "IN_PROGRESS"
        seen = []
        for step in (1, 2):
            api.node.step(job, step)
            seen += next(stream)["logs"]
        api.node.finish(job)
        last = next(stream)
        assert last["status"] == "COMPLETED"
        seen += last["logs"]
        assert [entry["message"] for entry in seen] == ["step 1/28", "step 2/28"]
        assert api.http.get(f"{APP}/requests/{job_id}").status_code == 200
        assert list(stream) == []


def test_the_stream_of_an_ended_request_is_one_event(api: Api) -> None:
    job_id = api.submit(num_images=0)
    answer = api.http.get(f"{APP}/requests/{job_id}/status/stream")
    assert answer.text.endswith("\n\n")
    (event,) = events_of(answer)
    assert event["status"] == "COMPLETED"


def test_a_stream_whose_reader_left_is_dropped(api: Api) -> None:
    job_id = api.submit()
    with api.http.stream("GET", f"{APP}/requests/{job_id}/status/stream") as response:
        next(events_of(response))
    eventually(lambda: not api.node.live._jobs[job_id].waiting)


# Result


@pytest.mark.parametrize(
    ("sizes", "units"),
    [([(64, 64)], "1"), ([(1024, 1024)], "1"), ([(1024, 1025)], "2"), ([(2048, 2048), (512, 512)], "5")],
)
def test_a_result_says_how_many_megapixels_it_has(api: Api, sizes: list[tuple[int, int]], units: str) -> None:
    job_id = api.submit()
    job = api.node.claim()
    images = [{"url": "/files/x", "width": width, "height": height} for width, height in sizes]
    api.node.finish(job, Outcome(JobStatus.COMPLETED, 200, {"images": images}))
    answer = api.http.get(f"{APP}/requests/{job_id}")
    assert answer.headers["x-fal-billable-units"] == units


def test_result_before_and_after_the_end(api: Api) -> None:
    job_id = api.submit(seed=7)
    early = api.http.get(f"{APP}/requests/{job_id}")
    assert (early.status_code, early.json()) == (400, {"detail": "Request is still in progress"})
    job = api.node.claim()
    assert api.http.get(f"{APP}/requests/{job_id}").status_code == 400
    api.node.finish(job)
    answers = [api.http.get(f"{APP}/requests/{job_id}{tail}") for tail in ("", "/", "/response", "")]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    body = answers[0].json()
    assert (body["seed"], body["prompt"]) == (7, "a fox")
    assert body["images"][0]["url"].startswith(f"{api.url}/files/")
    assert api.http.get(body["images"][0]["url"]).content == b"\x89PNG picture"


@pytest.mark.parametrize(
    ("http_status", "kind", "headers"),
    [
        (503, "runner_disconnected", {"x-fal-error-type": "runner_disconnected", "x-fal-retryable": "true"}),
        (504, "request_timeout", {"x-fal-request-timeout-type": "user", "x-fal-retryable": "false"}),
        (499, "client_cancelled", {"x-fal-retryable": "false"}),
    ],
)
def test_platform_failures(api: Api, http_status: int, kind: str, headers: dict[str, str]) -> None:
    job_id = api.submit()
    body = {"detail": "why", "error_type": kind}
    api.node.finish(api.node.claim(), Outcome(JobStatus.FAILED, http_status, body, "why", kind))
    told = status(api, job_id).json()
    assert (told["status"], told["error"], told["error_type"]) == ("COMPLETED", "why", kind)
    assert told["metrics"] == {"inference_time": None}
    result = api.http.get(f"{APP}/requests/{job_id}")
    assert (result.status_code, result.json()) == (http_status, body)
    assert headers.items() <= dict(result.headers).items()


# Cancel


def test_cancel_while_waiting_ends_it(api: Api) -> None:
    job_id = api.submit()
    answer = api.http.put(f"{APP}/requests/{job_id}/cancel", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert status(api, job_id).json()["error_type"] == "client_cancelled"
    result = api.http.get(f"{APP}/requests/{job_id}")
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")


def test_cancel_while_running_sets_the_flag(api: Api) -> None:
    job_id = api.submit()
    api.node.claim()
    for slash in ("", "/"):
        assert api.http.put(f"{APP}/requests/{job_id}/cancel{slash}").status_code == 202
    job = api.node.store.get(job_id)
    assert job is not None
    assert job.cancel_requested


def test_cancel_after_the_end_and_of_nothing(api: Api) -> None:
    job_id = api.submit()
    api.node.finish(api.node.claim())
    late = api.http.put(f"{APP}/requests/{job_id}/cancel")
    assert (late.status_code, late.json()["status"]) == (400, "ALREADY_COMPLETED")
    assert api.http.get(f"{APP}/requests/{job_id}").status_code == 200
    nobody = api.http.put(f"{APP}/requests/nobody/cancel")
    assert (nobody.status_code, nobody.json()["status"]) == (404, "NOT_FOUND")
    assert api.http.post(f"{APP}/requests/{job_id}/cancel").status_code == 405


def test_ten_cancels_at_once_agree(api: Api) -> None:
    job_id = api.submit()
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(httpx.put(f"{api.url}{APP}/requests/{job_id}/cancel").status_code))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes.count(202) >= 1
    assert set(codes) <= {202, 400}


# The durable store behind the same routes


def test_the_whole_way_over_sqlite(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"))) as api:
        job_id = api.submit(prompt="naïve ☃ \u0000 fox")
        api.node.finish(api.node.claim())
        assert status(api, job_id).status_code == 200
        assert api.http.get(f"{APP}/requests/{job_id}").json()["prompt"] == "naïve ☃ \u0000 fox"
        api.node.store.close()
        broken = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "x"})
        assert (broken.status_code, broken.json()["error_type"]) == (503, "runner_scheduling_failure")
