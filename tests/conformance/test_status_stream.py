"""Cases 51 to 55: the status stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.http import streams
from tests.conformance.child import Child
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted

SUBSCRIBE = """
    const updates = []
    const onQueueUpdate = (update) => updates.push(JSON.parse(JSON.stringify(update)))
    const { data } = await fal.subscribe(endpoint, { input, mode: "streaming", logs: true, onQueueUpdate })
    return { updates, data }
"""


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come."""
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


@pytest.mark.case(51)
def test_051_subscribe_by_stream_sees_every_state_and_each_line_once(
    server: Scripted, js: Child, record: Record
) -> None:
    blocked, gate = server.block(), server.new_gate()
    js.start(SUBSCRIBE, endpoint=DEV, input={"prompt": f"wait {gate}", **TINY})
    server.until(lambda: record.of("GET", "/status/stream"))  # it has been told that it waits
    request_id = record.of("POST", DEV)[-1].answer_headers["x-fal-request-id"]
    server.open(blocked)
    server.until(lambda: "step 1/2" in messages(server.status(request_id)))
    server.open(gate)
    seen = js.result()
    states = [update["status"] for update in seen["updates"]]
    assert list(dict.fromkeys(states)) == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert states == sorted(states, key=["IN_QUEUE", "IN_PROGRESS", "COMPLETED"].index)
    assert seen["updates"][-1]["logs"] == server.status(request_id)["logs"]
    assert messages(seen["updates"][-1]).count("step 1/2") == 1
    assert len(seen["data"]["images"]) == 1
    assert not [asked for asked in record.all() if (asked.target or "").partition("?")[0].endswith("/status")]


def messages(status: dict[str, Any]) -> list[str]:
    return [entry["message"] for entry in status.get("logs") or []]


@pytest.mark.case(52)
def test_052_a_stream_speaks_in_silence_and_ends_by_itself(impatient: Scripted) -> None:
    assert streams.PING_S <= 15  # the server of this test says it sooner
    gate = impatient.new_gate()
    request_id = impatient.submit(f"wait {gate}")
    received = ""
    with httpx.stream("GET", stream_url(impatient, request_id), timeout=60, verify=False) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for text in answer.iter_text():
            received += text
            if received.count("\n: ") >= 2:  # two comments, one after the other's silence
                impatient.open(gate)
    blocks = received.split("\n\n")
    assert blocks[-1] == "", "the last event ends with a blank line"
    assert all(block.startswith((": ", "data: ")) for block in blocks[:-1])
    assert json.loads(blocks[-2].removeprefix("data: "))["status"] == "COMPLETED"
    assert received.count("COMPLETED") == 1


def stream_url(server: Scripted, request_id: str) -> str:
    return f"{server.url}/queue/fal-ai/flux/requests/{request_id}/status/stream"


@pytest.mark.case(53)
def test_053_a_request_that_has_ended_gets_one_event(server: Scripted, js: Child) -> None:
    request_id = server.submit("a fox")
    server.until_status(request_id, "COMPLETED")
    code = """
        const seen = []
        const stream = await fal.queue.streamStatus(endpoint, { requestId, logs: true })
        stream.on("data", (event) => seen.push(event))
        return { last: await stream.done(), seen }
    """
    told = js(code, endpoint=DEV, requestId=request_id)
    assert [event["status"] for event in told["seen"]] == ["COMPLETED"]
    assert told["last"] == told["seen"][0]
    assert httpx.get(stream_url(server, request_id), timeout=60, verify=False).text.count("data: ") == 1


@pytest.mark.case(54)
@pytest.mark.parametrize("times", [200, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_054_the_result_is_there_when_the_stream_says_so(
    server: Scripted, js: Child, record: Record, times: int
) -> None:
    code = """
        const input = { prompt: "a fox", num_inference_steps: 1, image_size: { width: 16, height: 16 } }
        const once = () => fal.subscribe(endpoint, { input, mode: "streaming" })
        let done = 0
        const many = async () => {
          while (done < times) {
            done += 1
            const { data } = await once()
            if (data.images.length !== 1) throw new Error(JSON.stringify(data))
          }
        }
        await Promise.all(Array.from({ length: 10 }, many))
        return done
    """
    assert js(code, endpoint=DEV, times=times) == times
    results = [seen for seen in record.of("GET", "/requests/") if "/status" not in (seen.target or "")]
    assert [seen.status for seen in results] == [200] * times


@pytest.mark.case(55)
def test_055_a_stream_passes_the_proxy_unbuffered(server: Scripted, http: httpx.Client) -> None:
    gate = server.new_gate()
    request_id = server.submit(f"wait {gate}")
    target = f"https://queue.fal.run/fal-ai/flux/requests/{request_id}/status/stream"
    with http.stream("GET", "/api/fal/proxy", headers={"x-fal-target-url": target}) as answer:
        coming = events(answer.iter_lines())
        assert next(coming)["status"] in ("IN_QUEUE", "IN_PROGRESS")
        server.open(gate)  # only now can there be another end
        assert [event["status"] for event in coming][-1] == "COMPLETED"
