"""Cases 30 to 40: submit."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.child import Child
from tests.conformance.conftest import NewChild, StartServer
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

FOX = {"prompt": "a fox", **TINY}
SUBMIT_PYTHON = "return fal_client.submit(endpoint, arguments).request_id"
SUBMIT_JS = "return await fal.queue.submit(endpoint, { input })"


@pytest.mark.case(30)
def test_030_the_answer_has_seven_fields(js: Child) -> None:
    answers = [js(SUBMIT_JS, endpoint=DEV, input=FOX) for _ in range(3)]
    names = {"status", "request_id", "response_url", "status_url", "cancel_url", "queue_position", "gateway_request_id"}
    for answer in answers:
        assert set(answer) == names
        assert answer["status"] == "IN_QUEUE"
        assert type(answer["queue_position"]) is int
    assert len({answer["request_id"] for answer in answers}) == 3


@pytest.mark.case(31)
def test_031_addresses_leave_the_sub_path_out(js: Child) -> None:
    answer = js(SUBMIT_JS, endpoint=DEV, input=FOX)
    for name in ("response_url", "status_url", "cancel_url"):
        assert f"/fal-ai/flux/requests/{answer['request_id']}" in answer[name]
        assert "/flux/dev/requests/" not in answer[name]


@pytest.mark.case(32)
@pytest.mark.parametrize("endpoint", ["workflows/me/flow/x", "comfy/me/flow"])
def test_032_namespaced_ids_keep_three_segments(js: Child, python: Child, endpoint: str) -> None:
    answer = js(SUBMIT_JS, endpoint=endpoint, input=FOX)
    root = "/".join(endpoint.split("/")[:3])
    for name in ("response_url", "status_url", "cancel_url"):
        assert f"/queue/{root}/requests/{answer['request_id']}" in answer[name]
    for child, code in (
        (js, "return (await fal.subscribe(endpoint, { input, pollInterval: 50 })).data"),
        (python, "return fal_client.subscribe(endpoint, arguments)"),
    ):
        assert child(code, endpoint=endpoint, input=FOX, arguments=FOX)["prompt"] == "a fox"


@pytest.mark.case(33)
def test_033_a_legacy_id_is_owner_and_alias(python: Child, js: Child, record: Record) -> None:
    code = """
        handle = fal_client.submit("1234-my-app", arguments)
        handle.get()
        return type(fal_client.status("1234-my-app", handle.request_id)).__name__, handle.status_url
        """
    status, url = python(code, arguments=FOX)
    assert status == "Completed"
    assert "/queue/1234/my-app/requests/" in url
    by_js = js(
        "return (await fal.subscribe(endpoint, { input, pollInterval: 50 })).data", endpoint="1234-my-app", input=FOX
    )
    assert by_js["prompt"] == "a fox"
    submits = [seen.target or seen.path for seen in record.all() if seen.method == "POST"]
    assert submits == ["/queue/1234-my-app", "https://queue.fal.run/1234/my-app"]


def started_at(server: Scripted, request_id: str) -> str:
    """When a request began, by its log (ISO 8601, so that text compares as time)."""
    logs = server.until_status(request_id, "COMPLETED")["logs"]
    return str(next(entry["timestamp"] for entry in logs if entry["message"].startswith("started")))


@pytest.mark.case(34)
def test_034_low_priority_yields_and_other_words_are_ignored(server: Scripted, js: Child, python: Child) -> None:
    gate = server.block()
    low = js("return await fal.queue.submit(endpoint, { input, priority: 'low' })", endpoint=DEV, input=FOX)
    normal = js(SUBMIT_JS, endpoint=DEV, input=FOX)
    unknown = server.submit("a fox", headers={"x-fal-queue-priority": "urgent"})
    low_too = python(
        "return fal_client.submit(endpoint, arguments, priority='low').request_id", endpoint=DEV, arguments=FOX
    )
    order = [normal["request_id"], unknown, low["request_id"], low_too]
    assert [server.status(request_id)["queue_position"] for request_id in order] == [0, 1, 2, 3]
    server.open(gate)
    times = [started_at(server, request_id) for request_id in order]
    assert times == sorted(times)


@pytest.mark.case(35)
def test_035_a_start_deadline_ends_in_504_by_the_user(
    server: Scripted, python: Child, js: Child, record: Record
) -> None:
    server.block()
    js.start(
        "return await fal.subscribe(endpoint, { input, startTimeout: 2, pollInterval: 100 })", endpoint=DEV, input=FOX
    )
    failed = python.fails(
        "return fal_client.subscribe(endpoint, arguments, start_timeout=2)", endpoint=DEV, arguments=FOX
    )
    by_js = js.failure()
    assert (failed.name, failed.status, failed.facts["error_type"]) == ("FalClientHTTPError", 504, "request_timeout")
    assert failed.facts["headers"]["x-fal-request-timeout-type"] == "user"
    assert (by_js.name, by_js.status, by_js.facts["isUserTimeout"]) == ("ApiError", 504, True)
    assert by_js.facts["body"]["error_type"] == "request_timeout"
    seen = record.all()
    wanted = {one.headers["x-fal-request-timeout"] for one in seen if "x-fal-request-timeout" in one.headers}
    assert wanted == {"2", "2.0"}
    results = [one.status for one in seen if one.method == "GET" and "/status" not in (one.target or one.path)]
    assert results == [504, 504]
    for request_id in (failed.facts["headers"]["x-fal-request-id"], by_js.facts["requestId"]):
        status = server.status(request_id)
        assert (status["status"], status["error_type"]) == ("COMPLETED", "request_timeout")


@pytest.mark.case(36)
def test_036_a_deadline_that_is_no_number_is_a_bad_request(python: Child, server: Scripted) -> None:
    before = server.jobs()
    code = "return fal_client.submit(endpoint, arguments, headers={'X-Fal-Request-Timeout': text})"
    for text in ("abc", "0.05", "nan"):
        failed = python.fails(code, endpoint=DEV, arguments=FOX, text=text)
        assert (failed.status, failed.facts["error_type"]) == (400, "bad_request")
        assert isinstance(failed.facts["message"], str)
    assert server.jobs() == before


@pytest.mark.case(37)
def test_037_a_queue_longer_than_the_caller_allows_is_429(server: Scripted, http: httpx.Client) -> None:
    address = f"/queue/{DEV}?fal_max_queue_length=0"
    assert http.post(address, json=FOX).status_code == 200
    server.block()
    server.submit("a fox")
    before = server.jobs()
    answer = http.post(address, json=FOX)
    assert answer.status_code == 429
    assert answer.json()["error_type"] == "concurrent_requests_limit"
    assert answer.headers["x-fal-needs-retry"] == "1"
    assert server.jobs() == before


@pytest.mark.case(38)
def test_038_after_two_refusals_exactly_one_request_exists(
    start_server: StartServer, new_python: NewChild, new_js: NewChild
) -> None:
    server = start_server("--max-queue", "3")
    gate = server.block()
    while httpx.post(f"{server.url}/queue/{DEV}", json=FOX).status_code == 200:
        pass
    record, before = server.record(), server.jobs()
    python, js = new_python(server), new_js(server)
    python.start(SUBMIT_PYTHON, endpoint=DEV, arguments=FOX)
    js.start(SUBMIT_JS, endpoint=DEV, input=FOX)

    def answers(client: str) -> list[int | None]:
        return [seen.status for seen in record.of("POST", DEV) if seen.headers["user-agent"].startswith(client)]

    server.until(lambda: all(len(answers(client)) >= 2 for client in ("fal-client", "@fal-ai")))
    server.open(gate)
    ids = {python.result(), js.result()["request_id"]}
    assert len(ids) == 2
    for client in ("fal-client", "@fal-ai"):
        *refused, accepted = answers(client)
        assert set(refused) == {429}
        assert accepted == 200
    assert server.jobs() == before + 2


@pytest.mark.case(39)
def test_039_a_killed_server_still_answers_for_what_it_took(start_server: StartServer, new_python: NewChild) -> None:
    server = start_server()
    python = new_python(server)
    gate = server.block()
    waiting = python(SUBMIT_PYTHON, endpoint=DEV, arguments={"prompt": "a fox that waits", **TINY})
    server.server.kill_everything()
    server.open(gate)
    server.server.start().wait_ready()
    code = """
        while not isinstance(fal_client.status(endpoint, request_id), fal_client.Completed):
            time.sleep(0.05)
        return fal_client.result(endpoint, request_id)
        """
    assert python(code, endpoint=DEV, request_id=waiting)["prompt"] == "a fox that waits"


@pytest.mark.case(40)
def test_040_an_invalid_input_fails_subscribe_with_its_field(python: Child, js: Child) -> None:
    wrong: dict[str, Any] = FOX | {"num_inference_steps": 900}
    failed = js.fails("await fal.subscribe(endpoint, { input, pollInterval: 50 })", endpoint=DEV, input=wrong)
    assert (failed.name, failed.status) == ("ValidationError", 422)
    assert failed.facts["fieldErrors"][0]["loc"][-1] == "num_inference_steps"
    failed = python.fails("fal_client.subscribe(endpoint, arguments)", endpoint=DEV, arguments=wrong)
    assert (failed.name, failed.status) == ("FalClientHTTPError", 422)
    assert failed.facts["message"][0]["loc"] == ["body", "num_inference_steps"]
