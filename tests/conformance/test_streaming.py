"""Cases 69 to 75: streaming output. Case 74, of the `fal` package, is with the other clients."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.child import Child
from tests.conformance.conftest import NewChild
from tests.conformance.drawn import drawn
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

PYTHON_STREAM = "return list(fal_client.stream(endpoint, arguments))"
JS_STREAM = """
    const stream = await fal.stream(endpoint, { input })
    const events = []
    stream.on("data", (event) => events.push(event))
    const last = await stream.done()
    return { events, last }
"""


@pytest.mark.case(69)
def test_069_both_clients_see_the_same_events(server: Scripted, python: Child, js: Child) -> None:
    arguments = {"prompt": "a fox", "seed": 4, "sync_mode": True, **TINY}
    for _ in range(10):
        by_python = python(PYTHON_STREAM, endpoint=DEV, arguments=arguments)
        by_js = js(JS_STREAM, endpoint=DEV, input=arguments)
        assert by_js["last"] == by_js["events"][-1]
        assert drawn(by_js["last"]) == drawn(by_python[-1])
        run = python("return fal_client.run(endpoint, arguments)", endpoint=DEV, arguments=arguments)
        assert drawn(by_python[-1]) == drawn(run)
        # On a busy machine two steps may be told in one event; then this try compares nothing else.
        if steps(by_python) == steps(by_js["events"]) == [1, 2]:
            assert by_python[:-1] == by_js["events"][:-1]
            return
    raise AssertionError("steps were never told one by one")


def steps(events: list[dict[str, Any]]) -> list[int]:
    return [event["step"] for event in events if "step" in event]


@pytest.mark.case(70)
def test_070_long_events_of_wide_characters_arrive_whole(js: Child, python: Child) -> None:
    prompt = "画像を生成する狐" * 4000
    arguments = {"prompt": prompt, **TINY}
    by_js = js(JS_STREAM, endpoint=DEV, input=arguments)
    assert len(prompt.encode()) > 64 * 1024
    assert [event["prompt"] == prompt for event in by_js["events"]] == [True] * len(by_js["events"])
    assert python(PYTHON_STREAM, endpoint=DEV, arguments=arguments)[-1]["prompt"] == prompt


@pytest.mark.case(71)
def test_071_an_accept_of_both_kinds_gets_events(js: Child, record: Record) -> None:
    js(JS_STREAM, endpoint=DEV, input={"prompt": "a fox", **TINY})
    (seen,) = record.of("POST", "/stream")
    assert {kind.strip() for kind in seen.headers["accept"].split(",")} == {"application/json", "text/event-stream"}
    assert seen.answer_headers["content-type"].startswith("text/event-stream")


@pytest.mark.case(72)
def test_072_a_path_without_a_stream_is_404(js: Child, python: Child, record: Record) -> None:
    missing = f"{DEV}/no-such-route"
    failed = js.fails(JS_STREAM, endpoint=missing, input={"prompt": "a fox"})
    assert (failed.name, failed.status) == ("ApiError", 404)
    assert failed.facts["body"] == {"detail": "Path /no-such-route/stream not found"}
    # The client looks at the content type first, whatever the status: nothing that a server could change.
    assert python.fails(PYTHON_STREAM, endpoint=missing, arguments={"prompt": "a fox"}).name == "SSEError"
    assert [seen.status for seen in record.of("POST", "/stream")] == [404, 404]
    assert all(seen.answer_headers["content-type"] == "application/json" for seen in record.of("POST", "/stream"))


@pytest.mark.case(73)
def test_073_work_stops_when_the_reader_leaves(server: Scripted, js: Child, new_python: NewChild) -> None:
    before = server.ends("cancelled")
    code = """
        const stream = await fal.stream(endpoint, { input })
        const first = await new Promise((resolve) => stream.on("data", resolve))
        stream.abort()
        await stream.done()
        return first
    """
    first = js(code, endpoint=DEV, input={"prompt": f"wait {server.new_gate()}", **TINY})
    assert first["step"] == 1
    server.until(lambda: server.ends("cancelled") == before + 1)
    child = new_python(server)
    code = "next(fal_client.stream(endpoint, arguments)); os._exit(0)"
    child.start(code, endpoint=DEV, arguments={"prompt": f"wait {server.new_gate()}", **TINY})
    server.until(lambda: server.ends("cancelled") == before + 2)
    server.until(lambda: server.running() == 0)


@pytest.mark.case(75)
def test_075_a_browser_may_stream_with_a_token_alone(protected: Scripted, new_js: NewChild) -> None:
    """The page's own `fetch` is all that the client uses here, so the test's page brings the host to the server."""
    record = protected.record()
    code = """
        const here = (url) => url.replace("https://fal.run/", `${serverUrl}/run/`)
        const page = client.createFalClient({ ...middleware, fetch: (url, init) => fetch(here(String(url)), init) })
        const stream = await page.stream(endpoint, { input, connectionMode: "client" })
        return await stream.done()
    """
    output = new_js(protected)(code, endpoint=DEV, input={"prompt": "a fox", **TINY})
    assert output["prompt"] == "a fox"
    (seen,) = record.of("POST", "/stream")
    assert "authorization" not in seen.headers
    assert seen.query.startswith("fal_jwt_token=")
    assert seen.answer_headers["access-control-allow-origin"] == "*"
    with httpx.Client(base_url=protected.url, timeout=60, verify=False) as http:
        wanted = {"origin": "https://page.test", "access-control-request-headers": "content-type"}
        allowed = http.options(f"/run/{DEV}/stream", headers=wanted | {"access-control-request-method": "POST"})
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (204, "*")
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert allowed.headers["access-control-allow-headers"] == "content-type"
        bad = http.post(f"/run/{DEV}/stream?fal_jwt_token=nonsense", json={"prompt": "a fox"})
        assert bad.status_code == 401
