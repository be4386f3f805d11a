"""Cases 63 to 68: cancel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conformance.child import Child
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

PYTHON_CANCEL = "return fal_client.cancel(endpoint, id)"
JS_CANCEL = "return (await fal.queue.cancel(endpoint, { requestId: id })) ?? null"
CLIENTS = pytest.mark.parametrize("client", ["python", "js"])


def cancel(request: pytest.FixtureRequest, client: str, request_id: str) -> None:
    """With the official client of that name. Raises: ClientFailed."""
    child: Child = request.getfixturevalue(client)
    assert child(PYTHON_CANCEL if client == "python" else JS_CANCEL, endpoint=DEV, id=request_id) is None


def is_cancelled(server: Scripted, request_id: str) -> bool:
    """Whether status and result say so, and the same thing."""
    status, result = server.status(request_id), server.result(request_id)
    assert result.json()["error_type"] == "client_cancelled"
    return (status["status"], status["error_type"], result.status_code) == ("COMPLETED", "client_cancelled", 499)


@pytest.mark.case(63)
@CLIENTS
def test_063_a_waiting_request_never_runs(
    server: Scripted, request: pytest.FixtureRequest, record: Record, client: str
) -> None:
    blocked = server.block()
    request_id = server.submit("a fox")
    cancel(request, client, request_id)
    assert [seen.status for seen in record.of("PUT", "/cancel")] == [202]
    assert is_cancelled(server, request_id)
    server.open(blocked)
    later = server.submit("another fox")
    server.until_status(later, "COMPLETED")
    assert is_cancelled(server, request_id)
    assert not [entry for entry in server.status(request_id)["logs"] if "step" in entry["message"]]
    assert server.status(request_id)["metrics"]["inference_time"] is None


@pytest.mark.case(64)
@CLIENTS
def test_064_a_running_request_stops(server: Scripted, request: pytest.FixtureRequest, client: str) -> None:
    request_id = server.submit(f"wait {server.new_gate()}")  # whose gate nobody opens
    server.until(lambda: any(entry["message"] == "step 1/2" for entry in server.status(request_id).get("logs") or []))
    cancel(request, client, request_id)
    server.until_status(request_id, "COMPLETED")
    assert is_cancelled(server, request_id)
    server.until(lambda: server.running() == 0)


@pytest.mark.case(65)
def test_065_a_cancel_that_comes_too_late_or_means_nothing(server: Scripted, python: Child, js: Child) -> None:
    request_id = server.submit("a fox")
    server.until_status(request_id, "COMPLETED")
    before = server.result(request_id)
    for id_, code, word in (
        (request_id, 400, "ALREADY_COMPLETED"),
        ("00000000-0000-0000-0000-000000000000", 404, "NOT_FOUND"),
    ):
        failed = python.fails(PYTHON_CANCEL, endpoint=DEV, id=id_)
        assert (failed.name, failed.status) == ("FalClientHTTPError", code)
        assert isinstance(failed.facts["message"], str)
        failed = js.fails(JS_CANCEL, endpoint=DEV, id=id_)
        assert (failed.name, failed.status, failed.facts["body"]["status"]) == ("ApiError", code, word)
    after = server.result(request_id)
    assert (after.status_code, after.json()) == (before.status_code, before.json())


@pytest.mark.case(66)
@CLIENTS
def test_066_a_cancel_has_no_body_whatever_its_type(
    server: Scripted, request: pytest.FixtureRequest, record: Record, client: str
) -> None:
    request_id = server.submit(f"wait {server.new_gate()}")
    cancel(request, client, request_id)
    (seen,) = record.of("PUT", "/cancel")
    assert (seen.status, seen.headers.get("content-length", "0")) == (202, "0")
    assert seen.headers.get("content-type") == ("application/json" if client == "js" else None)


@pytest.mark.case(67)
def test_067_clients_that_lose_patience_cancel(server: Scripted, python: Child, js: Child, record: Record) -> None:
    slow = {"prompt": f"wait {server.new_gate()}", **TINY}
    failed = js.fails("return await fal.subscribe(endpoint, { input, timeout: 500 })", endpoint=DEV, input=slow)
    assert failed.facts["text"] == "Client timed out waiting for the request to complete after 500ms"
    server.until(lambda: len(record.of("PUT", "/cancel")) == 1)
    code = "return fal_client.subscribe(endpoint, arguments, client_timeout=1.5)"
    failed = python.fails(code, endpoint=DEV, arguments=slow)
    assert failed.name == "FalClientTimeoutError"
    server.until(lambda: len(record.of("PUT", "/cancel")) == 2)
    submits = [seen for seen in record.of("POST", DEV) if seen.headers["user-agent"].startswith("fal-client")]
    assert [seen.headers["x-fal-request-timeout"] for seen in submits] == ["1.5"]
    for seen in record.of("PUT", "/cancel"):
        assert seen.status == 202
        request_id = seen.answer_headers["x-fal-request-id"]
        server.until_status(request_id, "COMPLETED")
        assert is_cancelled(server, request_id)


@pytest.mark.case(68)
def test_068_cancels_at_the_same_moment_leave_one_end(server: Scripted, http: httpx.Client) -> None:
    def cancel_raw(request_id: str) -> int:
        return http.put(f"/queue/fal-ai/flux/requests/{request_id}/cancel").status_code

    with ThreadPoolExecutor(4) as threads:
        for attempt in range(12):
            gate = server.new_gate()
            request_id = server.submit(f"wait {gate}" if attempt % 2 else "a fox")
            if attempt % 2:
                server.open(gate)  # it ends about now
            answers = list(threads.map(cancel_raw, [request_id] * 2))
            assert set(answers) <= {202, 400}
            status = server.until_status(request_id, "COMPLETED")
            first, again = server.result(request_id), server.result(request_id)
            assert first.status_code in (200, 499)
            assert (first.status_code, first.json()) == (again.status_code, again.json())
            assert ("error" in status) == (first.status_code == 499)
            assert server.status(request_id) == status
            if set(answers) == {400}:
                assert first.status_code == 200, "it had ended before"
