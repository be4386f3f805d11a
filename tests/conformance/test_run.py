"""Cases 22 to 29: run."""

from __future__ import annotations

import threading

import pytest

from tests.conformance.child import Child
from tests.conformance.conftest import NewChild
from tests.conformance.drawn import drawn
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

FOX = {"prompt": "a fox", **TINY}
RUN_PYTHON = "return fal_client.run(endpoint, arguments)"
RUN_JS = "return await fal.run(endpoint, { input })"


@pytest.mark.case(22)
def test_022_both_clients_run_to_identical_outputs(server: Scripted, python: Child, js: Child, record: Record) -> None:
    arguments = {"prompt": "a fox", "seed": 7, "sync_mode": True, **TINY}
    by_python = python(RUN_PYTHON, endpoint=DEV, arguments=arguments)
    by_js = js(RUN_JS, endpoint=DEV, input=arguments)
    assert drawn(by_js["data"]) == drawn(by_python)
    ids = [seen.answer_headers["x-fal-request-id"] for seen in record.all()]
    assert len(set(ids)) == 2
    assert by_js["requestId"] == ids[1]


@pytest.mark.case(23)
def test_023_an_empty_body_of_json_is_an_empty_input(js: Child, record: Record) -> None:
    failed = js.fails("return await fal.run(endpoint)", endpoint=DEV)
    (seen,) = record.all()
    assert seen.headers.get("content-length", "0") == "0"
    assert seen.headers["content-type"] == "application/json"
    assert (failed.name, failed.status) == ("ValidationError", 422)
    assert [entry["loc"] for entry in failed.facts["fieldErrors"]] == [["body", "prompt"]]


@pytest.mark.case(24)
def test_024_run_by_get_is_405(js: Child, record: Record) -> None:
    failed = js.fails('return await fal.run(endpoint, { input, method: "get" })', endpoint=DEV, input=FOX)
    assert (failed.name, failed.status) == ("ApiError", 405)
    assert isinstance(failed.facts["body"]["detail"], str)
    assert len(record.all()) == 1


@pytest.mark.case(25)
def test_025_a_path_argument_and_a_longer_id_are_one_route(python: Child, record: Record) -> None:
    arguments = FOX | {"seed": 3, "sync_mode": True}
    code = 'return fal_client.run("fal-ai/flux", arguments, path=path), fal_client.run("fal-ai/flux/dev", arguments)'
    by_path, by_id = python(code, arguments=arguments, path="/dev")
    assert drawn(by_path) == drawn(by_id)
    assert [seen.path for seen in record.all()] == [f"/run/{DEV}"] * 2


@pytest.mark.case(26)
def test_026_work_stops_when_its_caller_leaves(server: Scripted, new_python: NewChild) -> None:
    child = new_python(server)
    child.start(RUN_PYTHON, endpoint=DEV, arguments={"prompt": f"wait {server.new_gate()}", **TINY})
    server.until(lambda: server.running() == 1)
    child.kill()
    # The gate stays shut, so nothing but a cancel can end it. A run that nobody waits for is forgotten soon after its
    # end, perhaps before the worker's next heartbeat: its own end cannot be counted.
    server.until(lambda: server.running() == 0)
    server.until(lambda: server.ends("running") == server.ends("queued") == 0)


@pytest.mark.case(27)
@pytest.mark.parametrize("seconds", [7, pytest.param(150, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
def test_027_a_long_run_is_waited_for(server: Scripted, python: Child, js: Child, record: Record, seconds: int) -> None:
    # Longer than the five seconds that an HTTP client waits unless told otherwise; slowly, as long as the case says.
    gate = server.new_gate()
    python.start(RUN_PYTHON, endpoint=DEV, arguments={"prompt": f"wait {gate}", **TINY})
    js.start(RUN_JS, endpoint=DEV, input={"prompt": f"wait {gate}", **TINY})
    threading.Timer(seconds, server.open, [gate]).start()
    assert python.result()["prompt"] == f"wait {gate}"
    assert js.result()["data"]["prompt"] == f"wait {gate}"
    assert [seen.status for seen in record.all()] == [200, 200]


@pytest.mark.case(28)
def test_028_an_unknown_endpoint_is_404_with_a_sentence(python: Child, js: Child) -> None:
    failed = python.fails(RUN_PYTHON, endpoint="fal-ai/no-such-app", arguments=FOX)
    assert (failed.name, failed.status) == ("FalClientHTTPError", 404)
    assert isinstance(failed.facts["message"], str)
    failed = js.fails(RUN_JS, endpoint="fal-ai/no-such-app", input=FOX)
    assert (failed.name, failed.status) == ("ApiError", 404)
    assert isinstance(failed.facts["body"]["detail"], str)
