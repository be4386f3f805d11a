"""Cases 105 to 110: errors and headers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conformance.child import Child
from tests.conformance.conftest import NewChild
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted
from tests.ports import free_port

UNKNOWN = "00000000-0000-4000-8000-000000000000"
FOX = {"prompt": "a fox", **TINY}
APP = "/queue/fal-ai/flux/requests"


def failures(server: Scripted, http: httpx.Client) -> Iterator[httpx.Response]:
    """An answer to every kind of mistake, and to every way in which a request can fail."""
    for area in ("run", "queue"):
        yield http.post(f"/{area}/{DEV}", content=b"{")
        yield http.post(f"/{area}/{DEV}", content=b"[1]")
        yield http.post(f"/{area}/fal-ai/no-such-app", json=FOX)
        yield http.post(f"/{area}/{DEV}/no-such-path", json=FOX)
        yield http.post(f"/{area}/nothing", json=FOX)
        yield http.delete(f"/{area}/{DEV}")
        yield http.post(f"/{area}/{DEV}", json=FOX, headers={"x-fal-request-timeout": "abc"})
        yield http.post(f"/{area}/{DEV}?fal_max_queue_length=x", json=FOX)
        yield http.post(f"/{area}/{DEV}", content=b"x" * (33 * 1024 * 1024))
    for tail in ("", "/status", "/status/stream", "/response", "/nothing"):
        yield http.get(f"{APP}/{UNKNOWN}{tail}")
    yield http.put(f"{APP}/{UNKNOWN}/cancel")
    yield http.get(f"{APP}/{UNKNOWN}/cancel")
    yield http.post("/api/fal/proxy", json=FOX)
    for prompt in ("oom", "model error"):
        yield http.post(f"/run/{DEV}", json={"prompt": prompt, **TINY})
        yield http.post(f"/run/{DEV}/stream", json={"prompt": prompt, **TINY})
    yield http.post(f"/run/{DEV}", json={"prompt": "crash", **TINY})
    for input_ in ({"prompt": "oom"}, {"prompt": "model error"}, {"prompt": "a fox", "num_images": 9}):
        request_id = server.submit(**input_)
        server.until_status(request_id, "COMPLETED")
        yield server.result(request_id)
        yield http.put(f"{APP}/{request_id}/cancel")
    running = server.submit(f"wait {server.new_gate()}")
    yield server.result(running)
    yield http.put(f"{APP}/{running}/cancel")
    server.until_status(running, "COMPLETED")
    yield server.result(running)


@pytest.fixture(scope="module")
def answers(shared_server: Scripted) -> list[httpx.Response]:
    """All of `failures`, once."""
    with httpx.Client(base_url=shared_server.url, timeout=60, verify=False) as client:
        return list(failures(shared_server, client))


@pytest.mark.case(105)
def test_105_every_error_is_an_object_with_detail_and_an_id(
    answers: list[httpx.Response], server: Scripted, python: Child, js: Child, record: Record
) -> None:
    for answer in answers:
        if answer.status_code == 202:  # the cancel of a running request is no error
            continue
        assert answer.status_code >= 400, answer.request.url
        assert answer.headers["content-type"] == "application/json"
        assert isinstance(answer.json()["detail"], str | list)
        assert answer.headers["x-fal-request-id"]
    python(
        "fal_client.run(endpoint, arguments); fal_client.subscribe(endpoint, arguments)", endpoint=DEV, arguments=FOX
    )
    js("await fal.run(endpoint, { input }); await fal.subscribe(endpoint, { input })", endpoint=DEV, input=FOX)
    assert len(record.all()) >= 8
    assert all(seen.answer_headers["x-fal-request-id"] for seen in record.all())


@pytest.mark.case(106)
def test_106_the_error_type_is_in_body_and_header_alike(answers: list[httpx.Response], python: Child) -> None:
    kinds = {answer.json()["error_type"] for answer in answers if "error_type" in answer.json()}
    assert {"bad_request", "runner_server_error", "runner_disconnected", "client_cancelled"} <= kinds
    for answer in answers:
        assert answer.json().get("error_type") == answer.headers.get("x-fal-error-type"), answer.request.url
        if "error_type" in answer.json():
            is_worth_repeating = answer.status_code in (429, 500, 502, 503, 504)
            assert answer.headers["x-fal-retryable"] == str(is_worth_repeating).lower()
            assert answer.headers.get("x-fal-needs-retry") == ("1" if is_worth_repeating else None)
    failed = python.fails("fal_client.run(endpoint, arguments)", endpoint=DEV, arguments={"prompt": "oom", **TINY})
    assert failed.facts["error_type"] == failed.facts["headers"]["x-fal-error-type"] == "runner_server_error"


TABLE: dict[str, tuple[int, set[str]]] = {
    "internal_server_error": (500, set()),
    "feature_not_supported": (422, set()),
    "image_too_large": (422, {"max_height", "max_width"}),
    "greater_than": (422, {"gt"}),
    "greater_than_equal": (422, {"ge"}),
    "less_than_equal": (422, {"le"}),
    "missing": (422, set()),
    "string_type": (422, set()),
    "string_too_long": (422, {"max_length"}),
    "literal_error": (422, {"expected"}),
    "int_parsing": (422, set()),
    "json_invalid": (422, {"error"}),
}
"""Status and keys of `ctx` by the type of a model error: the protocol's table as far as this server produces it."""

WRONG: dict[str, tuple[str, Any]] = {
    "internal_server_error": (DEV, {"prompt": "model error"}),
    "feature_not_supported": (
        "fal-ai/flux-control-lora-canny",
        {"prompt": "x", "control_lora_image_url": "https://a.test/x.png", "control_lora_strength": 0.5},
    ),
    "image_too_large": (DEV, {"prompt": "x", "image_size": {"width": 14000, "height": 14000}}),
    "greater_than": (DEV, {"prompt": "x", "image_size": {"width": 0, "height": 64}}),
    "greater_than_equal": (DEV, {"prompt": "x", "num_inference_steps": 0}),
    "less_than_equal": (DEV, {"prompt": "x", "num_images": 9}),
    "missing": (DEV, {}),
    "string_type": (DEV, {"prompt": 7}),
    "string_too_long": (DEV, {"prompt": "x" * 40_000}),
    "literal_error": (DEV, {"prompt": "x", "output_format": "bmp"}),
    "int_parsing": (DEV, {"prompt": "x", "num_images": "two"}),
    "json_invalid": (DEV, b'{"prompt":'),
}


@pytest.mark.case(107)
@pytest.mark.parametrize("kind", TABLE)
def test_107_model_errors_are_as_the_table_says(http: httpx.Client, kind: str) -> None:
    endpoint, body = WRONG[kind]
    sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = http.post(f"/run/{endpoint}", **sent)
    status, ctx = TABLE[kind]
    assert answer.status_code == status, answer.text
    (entry,) = answer.json()["detail"]
    assert (entry["type"], entry["loc"][0], type(entry["msg"])) == (kind, "body", str)
    assert set(entry.get("ctx", {})) == ctx
    assert answer.headers["x-fal-retryable"] == "false"
    if status == 422:
        assert entry["url"] == f"https://docs.fal.ai/errors/#{kind}"
        assert answer.headers["x-fal-billable-units"] == "0"


@pytest.mark.case(108)
def test_108_a_503_is_asked_once_and_a_refused_connection_ten_times(
    server: Scripted, python: Child, record: Record, new_python: NewChild
) -> None:
    failed = python.fails("fal_client.run(endpoint, arguments)", endpoint=DEV, arguments={"prompt": "crash", **TINY})
    assert (failed.status, failed.facts["error_type"]) == (503, "runner_disconnected")
    assert failed.facts["headers"]["x-fal-request-id"]
    assert [seen.status for seen in record.all()] == [503]
    # Nobody listens; the pauses, a minute together, are counted and not waited for.
    lost = new_python(server, FAL_RUN_HOST=f"127.0.0.1:{free_port()}")
    error, pauses = lost(
        """
        pauses = []
        time.sleep = pauses.append
        try:
            fal_client.run(endpoint, arguments)
        except Exception as exc:
            return type(exc).__name__, len(pauses)
        """,
        endpoint=DEV,
        arguments=FOX,
    )
    assert (error, pauses) == ("ConnectError", 9)


@pytest.mark.case(109)
def test_109_no_answer_speaks_of_nginx(answers: list[httpx.Response], http: httpx.Client) -> None:
    for answer in [*answers, http.get("/"), http.get("/nothing/here"), http.get("/health"), http.get("/openapi.json")]:
        assert b"nginx" not in answer.content.lower()
        assert "nginx" not in str(answer.headers).lower()


@pytest.mark.case(110)
def test_110_javascript_finds_the_field(js: Child) -> None:
    entries = js(
        """
        try {
          await fal.run(endpoint, { input: { prompt: 7 } })
        } catch (error) {
          return error.getFieldErrors("prompt")
        }
        """,
        endpoint=DEV,
    )
    assert [entry["loc"] for entry in entries] == [["body", "prompt"]]
