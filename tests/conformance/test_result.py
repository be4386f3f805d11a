"""Cases 56 to 62: the result."""

from __future__ import annotations

import pytest

from tests.conformance.child import Child
from tests.conformance.conftest import StartServer
from tests.conformance.drawn import drawn
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

PYTHON_RESULT = "return fal_client.result(endpoint, id)"
JS_RESULT = "return await fal.queue.result(endpoint, { requestId })"


def results(record: Record, request_id: str) -> list[int | None]:
    """Status of every result call that a client made."""
    asked = record.of("GET", f"/requests/{request_id}")
    return [seen.status for seen in asked if not (seen.target or seen.path).partition("?")[0].endswith("/status")]


@pytest.mark.case(56)
def test_056_a_result_asked_for_too_early_is_400_once(server: Scripted, js: Child, record: Record) -> None:
    request_id = server.submit(f"wait {server.new_gate()}")
    failed = js.fails(JS_RESULT, endpoint=DEV, requestId=request_id)
    assert (failed.name, failed.status) == ("ApiError", 400)
    assert failed.facts["body"] == {"detail": "Request is still in progress"}
    assert failed.facts["requestId"] == request_id
    assert results(record, request_id) == [400]


@pytest.mark.case(57)
def test_057_a_result_is_what_a_run_answers(server: Scripted, python: Child, js: Child, record: Record) -> None:
    arguments = {"prompt": "a fox", "seed": 5, "sync_mode": True, **TINY}
    code = """
        handle = fal_client.submit(endpoint, arguments)
        return fal_client.run(endpoint, arguments), handle.get(), handle.request_id
    """
    run, result, request_id = python(code, endpoint=DEV, arguments=arguments)
    assert drawn(result) == drawn(run)
    by_js = js(JS_RESULT, endpoint=DEV, requestId=request_id)
    assert by_js == {"data": result, "requestId": request_id}
    answers = [seen for seen in record.of("GET", f"/requests/{request_id}") if not seen.path.endswith("/status")]
    assert {seen.answer_headers["x-fal-request-id"] for seen in answers} == {request_id}


@pytest.mark.case(58)
def test_058_a_rejected_input_is_422_at_every_reading(server: Scripted, python: Child, js: Child) -> None:
    request_id = server.submit("a fox", num_images=9)
    server.until_status(request_id, "COMPLETED")
    first, again = server.result(request_id), server.result(request_id)
    assert (first.status_code, first.headers["content-type"]) == (422, "application/json")
    assert (again.status_code, again.json()) == (422, first.json())
    (entry,) = first.json()["detail"]
    assert (entry["loc"], entry["type"], entry["ctx"]) == (["body", "num_images"], "less_than_equal", {"le": 4})
    failed = python.fails(PYTHON_RESULT, endpoint=DEV, id=request_id)
    assert (failed.name, failed.status, failed.facts["message"]) == ("FalClientHTTPError", 422, [entry])
    failed = js.fails(JS_RESULT, endpoint=DEV, requestId=request_id)
    assert (failed.name, failed.status, failed.facts["fieldErrors"]) == ("ValidationError", 422, [entry])


@pytest.mark.case(59)
def test_059_a_crash_on_the_last_attempt_is_told_once(server: Scripted, python: Child, record: Record) -> None:
    request_id = server.submit("crash", headers={"X-Fal-No-Retry": "1"})
    server.until_status(request_id, "COMPLETED")
    failed = python.fails(PYTHON_RESULT, endpoint=DEV, id=request_id)
    assert (failed.name, failed.status, failed.facts["error_type"]) == (
        "FalClientHTTPError",
        503,
        "runner_disconnected",
    )
    assert failed.facts["headers"]["x-fal-request-id"] == request_id
    assert "nginx" not in server.result(request_id).text
    assert results(record, request_id) == [503, 503]  # the client's and ours
    server.server.wait_ready()  # the worker is back for the next test


@pytest.mark.case(61)
def test_061_after_its_time_a_result_is_gone(start_server: StartServer) -> None:
    server = start_server(constants={"server.jobs.upkeep.SWEEP_S": 0.2}, FLUXSERVE_RETENTION_S="3")
    request_id = server.submit("a fox")

    def is_gone() -> bool:
        return server.result(request_id).status_code == 404

    server.until(is_gone)
    gone = server.result(request_id)
    assert (gone.json()["status"], isinstance(gone.json()["detail"], str)) == ("NOT_FOUND", True)


@pytest.mark.case(62)
def test_062_reading_deletes_nothing(server: Scripted, python: Child, js: Child) -> None:
    request_id = server.submit("a fox")
    server.until_status(request_id, "COMPLETED")
    code = "return [fal_client.result(endpoint, id) for _ in range(2)]"
    first, again = python(code, endpoint=DEV, id=request_id)
    assert first == again
    by_js = [js(JS_RESULT, endpoint=DEV, requestId=request_id)["data"] for _ in range(2)]
    # The picture's address follows how the caller came in; everything else is the same.
    keys = [[image.pop("url").rpartition("/")[2] for image in body["images"]] for body in (first, *by_js)]
    assert keys[0] == keys[1] == keys[2]
    assert first == by_js[0] == by_js[1]
