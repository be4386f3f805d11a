"""What fal's request headers change, beyond the numbered cases."""

from __future__ import annotations

import json

import httpx
import pytest

from tests.conformance.child import Child
from tests.conformance.conftest import StartServer
from tests.conformance.scripted import DEV, TINY, Scripted


def runs(server: Scripted, request_id: str) -> list[str]:
    """The workers that ran a request, one entry a run, from the server's log."""
    lines = server.server.output.splitlines()
    marked = [line.partition(f"request {request_id} goes to ")[2] for line in lines]
    return [line.partition("#")[0] for line in marked if line]


def test_a_runner_hint_sticks_to_one_worker(start_server: StartServer) -> None:
    server = start_server("--device", "cpu,cpu")
    # Until both are ready, whoever is serves every hint.
    server.until(lambda: [worker["state"] for worker in server.server.health()["workers"]] == ["ready"] * 2)

    def workers(hint: str) -> set[str]:
        ids = [server.submit("a fox", headers={"x-fal-runner-hint": hint}) for _ in range(4)]
        for request_id in ids:
            server.until_status(request_id, "COMPLETED")
        return {worker for request_id in ids for worker in runs(server, request_id)}

    seen = [workers(f"session {number}") for number in range(8)]
    assert all(len(names) == 1 for names in seen)
    assert len(set.union(*seen)) == 2


def test_without_retries_one_fault_is_the_end(server: Scripted, python: Child) -> None:
    code = "return fal_client.submit(endpoint, arguments, headers=headers).request_id"

    def ended(prompt: str, headers: dict[str, str]) -> tuple[int, int]:
        request_id = python(code, endpoint=DEV, arguments={"prompt": prompt, **TINY}, headers=headers)
        server.until_status(request_id, "COMPLETED")
        return len(runs(server, request_id)), server.result(request_id).status_code

    assert ended("crash once", {}) == (2, 200)
    assert ended("crash once", {"X-Fal-No-Retry": "1"}) == (1, 503)
    assert ended("crash once", {"X-Fal-Retry-Config": json.dumps({"connection_error": {"retries": 0}})}) == (1, 503)
    assert ended("crash once", {"X-Fal-Retry-Config": json.dumps({"server_error": {"retries": 0}})}) == (2, 200)
    assert ended("internal", {"X-Fal-Retry-Config": json.dumps({"server_error": {"retries": 1}})}) == (2, 500)


def test_payloads_that_shall_not_be_kept_are_gone_soon(hasty: Scripted) -> None:
    kept = hasty.submit("a fox")
    hasty.until_status(kept, "COMPLETED")
    private = hasty.submit("a fox", headers={"x-fal-store-io": "0"})
    hasty.until(lambda: hasty.result(private).status_code == 404)
    assert hasty.result(kept).status_code == 200


@pytest.mark.parametrize("wish", ["{}", "nonsense", '{"expiration_duration_seconds": null}'])
def test_a_lifecycle_that_says_nothing_changes_nothing(server: Scripted, wish: str) -> None:
    assert picture_of(server, wish).status_code == 200


def test_a_picture_lives_as_long_as_its_caller_says(server: Scripted) -> None:
    lasting = picture_of(server, '{"expiration_duration_seconds": 100}')
    seconds = int(lasting.headers["cache-control"].partition("max-age=")[2].partition(",")[0])
    assert 0 < seconds <= 100
    url = str(picture_of(server, '{"expiration_duration_seconds": 1}').request.url)
    server.until(lambda: httpx.get(url).status_code == 404)


def picture_of(server: Scripted, lifecycle: str) -> httpx.Response:
    """The picture of a request with this preference, at once."""
    headers = {"x-fal-object-lifecycle-preference": lifecycle}
    answer = httpx.post(f"{server.url}/run/{DEV}", json={"prompt": "a fox", **TINY}, headers=headers, timeout=60)
    return httpx.get(answer.json()["images"][0]["url"], timeout=60)
