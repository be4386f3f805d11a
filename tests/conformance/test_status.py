"""Cases 41 to 50: status."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance.child import Child
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

UNKNOWN = "00000000-0000-4000-8000-000000000000"
STATUS = "return type(fal_client.status(endpoint, request_id)).__name__"


def three_states(server: Scripted) -> tuple[str, str, str]:
    """Ids of a request that has ended, one that runs and one that waits, until the test ends."""
    ended = server.submit("a fox")
    server.until_status(ended, "COMPLETED")
    running = server.submit(f"wait {server.new_gate()}")
    server.until(lambda: server.status(running).get("logs"))
    server.block()
    return ended, running, server.submit("a fox")


@pytest.mark.case(41)
def test_041_the_code_is_202_until_the_end(server: Scripted, python: Child, record: Record) -> None:
    ended, running, waiting = three_states(server)
    for request_id, state, code in ((waiting, "Queued", 202), (running, "InProgress", 202), (ended, "Completed", 200)):
        assert python(STATUS, endpoint=DEV, request_id=request_id) == state
        assert record.of("GET", request_id)[-1].status == code


@pytest.mark.case(42)
def test_042_the_queue_position_falls_to_zero(server: Scripted, python: Child) -> None:
    server.block()
    ahead = [server.submit("a fox"), server.submit("a fox")]
    mine = server.submit("a fox")
    positions = python(
        """
        positions = [fal_client.status(endpoint, mine).position]
        for request_id in ahead:
            fal_client.cancel(endpoint, request_id)
            positions.append(fal_client.status(endpoint, mine).position)
        return positions
        """,
        endpoint=DEV,
        mine=mine,
        ahead=ahead,
    )
    assert positions == [2, 1, 0]
    assert all(type(position) is int for position in positions)


@pytest.mark.case(43)
@pytest.mark.parametrize("query", ["", "?logs=0", "?logs=false", "?logs=1", "?logs=true"])
def test_043_logs_are_a_key_from_the_start_on(server: Scripted, http: httpx.Client, python: Child, query: str) -> None:
    ended, running, _ = three_states(server)
    for request_id in (ended, running):
        logs = http.get(f"/queue/fal-ai/flux/requests/{request_id}/status{query}").json()["logs"]
        if query in ("?logs=1", "?logs=true"):
            assert logs
            keys = {"message", "level", "source", "timestamp", "labels"}
            assert all(set(entry) == keys for entry in logs)
        else:
            assert not logs
    code = "return fal_client.status(endpoint, request_id, with_logs=with_logs).logs"
    for with_logs in (False, True):
        assert bool(python(code, endpoint=DEV, request_id=running, with_logs=with_logs)) == with_logs


@pytest.mark.case(44)
def test_044_the_end_has_metrics(server: Scripted, python: Child, js: Child) -> None:
    ended = server.submit("a fox")
    server.until_status(ended, "COMPLETED")
    code = "return fal_client.status(endpoint, request_id).metrics"
    by_python = python(code, endpoint=DEV, request_id=ended)
    by_js = js("return (await fal.queue.status(endpoint, { requestId })).metrics", endpoint=DEV, requestId=ended)
    assert by_python == by_js
    assert type(by_python["inference_time"]) is float


@pytest.mark.case(45)
def test_045_every_body_names_the_request(server: Scripted, js: Child) -> None:
    for request_id in three_states(server):
        body = js("return await fal.queue.status(endpoint, { requestId })", endpoint=DEV, requestId=request_id)
        assert {"status", "request_id", "response_url", "status_url", "cancel_url"} <= set(body)
        assert body["request_id"] == request_id
        assert body["response_url"] == f"{server.url}/queue/fal-ai/flux/requests/{request_id}"


@pytest.mark.case(46)
def test_046_a_failure_is_completed_with_its_kind(server: Scripted, python: Child, js: Child) -> None:
    kinds = {"oom": "runner_server_error", "model error": "internal_server_error", "crash": "runner_disconnected"}
    code = """
        const { request_id: requestId } = await fal.queue.submit(endpoint, { input })
        const words = new Set()
        for (;;) {
          const status = await fal.queue.status(endpoint, { requestId })
          words.add(status.status)
          if (status.status === "COMPLETED") return { requestId, words: [...words], ...status }
          await pause(10)
        }
        """
    for prompt, kind in kinds.items():
        ended = js(code, endpoint=DEV, input={"prompt": prompt, **TINY})
        assert set(ended["words"]) <= {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
        assert (ended["error_type"], type(ended["error"])) == (kind, str)
        told = python(
            "status = fal_client.status(endpoint, request_id); return status.error, status.error_type",
            endpoint=DEV,
            request_id=ended["requestId"],
        )
        assert told == [ended["error"], kind]


@pytest.mark.case(47)
def test_047_an_unknown_request_is_404_asked_once(python: Child, js: Child, record: Record) -> None:
    failed = python.fails(STATUS, endpoint=DEV, request_id=UNKNOWN)
    assert (failed.name, failed.status) == ("FalClientHTTPError", 404)
    assert isinstance(failed.facts["message"], str)
    assert [seen.status for seen in record.all()] == [404]
    failed = js.fails("await fal.queue.status(endpoint, { requestId })", endpoint=DEV, requestId=UNKNOWN)
    assert failed.status == 404
    assert [seen.status for seen in record.all()] == [404, 404]


@pytest.mark.case(48)
def test_048_fifty_pollers_do_not_stop_the_queue(server: Scripted, python: Child) -> None:
    held = server.submit(f"wait {server.new_gate()}")
    polls, results = python(
        """
        polls, done = 0, False

        async def poll():
            nonlocal polls
            while not done:
                await fal_client.status_async(endpoint, held)
                polls += 1
                await asyncio.sleep(0.1)

        pollers = [asyncio.ensure_future(poll()) for _ in range(50)]
        while polls < 50:
            await asyncio.sleep(0.05)
        results = [await fal_client.subscribe_async(endpoint, arguments) for _ in range(3)]
        done = True
        await asyncio.gather(*pollers)
        return polls, len(results)
        """,
        endpoint=DEV,
        held=held,
        arguments={"prompt": "a fox", **TINY},
    )
    assert results == 3
    assert polls >= 100
    assert server.status(held)["status"] == "IN_PROGRESS"


@pytest.mark.case(49)
def test_049_a_query_in_the_address_may_be_replaced(server: Scripted, python: Child, record: Record) -> None:
    messages = python(
        """
        from dataclasses import replace
        handle = fal_client.submit(endpoint, arguments)
        handle.get()
        asked = replace(handle, status_url=handle.status_url + "?logs=0&state=7")
        return [entry["message"] for entry in asked.status(with_logs=True).logs]
        """,
        endpoint=DEV,
        arguments={"prompt": "a fox", **TINY},
    )
    assert record.all()[-1].query == "logs=true"
    assert "step 1/2" in messages


@pytest.mark.case(50)
def test_050_the_full_id_answers_like_the_app_root(server: Scripted, http: httpx.Client) -> None:
    def told(app: str, request_id: str) -> tuple[int, dict[str, Any]]:
        answer = http.get(f"/queue/{app}/requests/{request_id}/status")
        return answer.status_code, answer.json()

    for request_id in three_states(server):
        assert told(DEV, request_id) == told("fal-ai/flux", request_id)
        assert told(f"{DEV}/image-to-image", request_id) == told("fal-ai/flux", request_id)
