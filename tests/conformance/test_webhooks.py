"""Cases 98 to 104: webhooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from server.jobs import webhooks
from server.jobs.store.job import JobStatus, Outcome
from tests.conformance.child import Child, ClientFailed
from tests.conformance.conftest import LOOPBACK, SOON, StartServer
from tests.conformance.scripted import DEV, TINY, Scripted
from tests.server.api_node import ApiNode
from tests.server.api_server import eventually
from tests.server.api_server import serve as serve_node
from tests.server.receiver import Receiver, receiving

FOX = {"prompt": "a fox", **TINY}
VERIFY = """
    const { keys } = await (await fetch(`${serverUrl}/rest/.well-known/jwks.json`)).json()
    const hash = crypto.createHash("sha256").update(body).digest("hex")
    const parts = ["request-id", "user-id", "timestamp"].map((name) => headers[`x-fal-webhook-${name}`])
    const message = Buffer.from([...parts, hash].join("\\n"))
    const signature = Buffer.from(headers["x-fal-webhook-signature"], "hex")
    return keys.map((key) => crypto.verify(null, message, crypto.createPublicKey({ key, format: "jwk" }), signature))
    """
"""A receiver's own check, by fal's documentation alone and with another library than ours: Node's."""


def submit(js: Child, receiver: Receiver, **changes: Any) -> str:
    code = "return (await fal.queue.submit(endpoint, { input, webhookUrl })).request_id"
    return str(js(code, endpoint=DEV, input=FOX | changes, webhookUrl=receiver.url))


@pytest.mark.case(98)
def test_098_a_good_end_is_posted_once_and_signed(hasty: Scripted, hasty_js: Child, receiver: Receiver) -> None:
    request_id = submit(hasty_js, receiver)
    hasty.until(lambda: receiver.calls)
    body = receiver.payloads[0]
    assert (body["request_id"], body["gateway_request_id"], body["status"]) == (request_id, request_id, "OK")
    assert body["payload"] == hasty.result(request_id).json()
    assert not body.get("error")
    headers, raw = receiver.calls[0]
    assert headers["content-type"] == "application/json"
    assert hasty_js(VERIFY, headers=headers, body=raw.decode()) == [True]
    assert hasty_js(VERIFY, headers=headers, body=raw.decode() + " ") == [False]
    # Several rounds of the outbox later there is still one.
    other = submit(hasty_js, receiver)
    hasty.until(lambda: len(receiver.calls) >= 2)
    assert [payload["request_id"] for payload in receiver.payloads] == [request_id, other]


@pytest.mark.case(99)
def test_099_a_rejected_input_is_an_error_with_its_detail(hasty: Scripted, hasty_js: Child, receiver: Receiver) -> None:
    request_id = submit(hasty_js, receiver, num_images=9)
    hasty.until(lambda: receiver.calls)
    (body,) = receiver.payloads
    assert (body["request_id"], body["status"], body["error"]) == (request_id, "ERROR", "Invalid status code: 422")
    assert body["payload"]["detail"][0]["loc"] == ["body", "num_images"]


@pytest.mark.case(100)
def test_100_an_output_that_is_no_json_says_so(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No endpoint of ours answers so; the test plays a worker that does.
    monkeypatch.setattr(webhooks, "POLL_S", 0.01)
    with serve_node(ApiNode(tmp_path, allow_private_cidrs=("127.0.0.0/8",))) as api:
        address = f"/queue/{DEV}?fal_webhook={quote(receiver.url, safe='')}"
        request_id = api.http.post(address, json=FOX).json()["request_id"]
        api.node.finish(api.node.claim(), Outcome(JobStatus.COMPLETED, 200, {"text": "half a character: \ud83e"}))
        eventually(lambda: receiver.calls)
    (body,) = receiver.payloads
    assert (body["request_id"], body["status"], body["payload"]) == (request_id, "OK", None)
    assert isinstance(body["payload_error"], str)


@pytest.mark.case(101)
def test_101_errors_are_repeated_and_redirects_are_not(hasty: Scripted, hasty_js: Child, receiver: Receiver) -> None:
    receiver.statuses = [500, 500, 200]
    request_id = submit(hasty_js, receiver)
    hasty.until(lambda: len(receiver.calls) == 3)
    assert {payload["request_id"] for payload in receiver.payloads} == {request_id}
    assert len({body for _, body in receiver.calls}) == 1
    with receiving() as elsewhere:
        elsewhere.statuses = [302]
        submit(hasty_js, elsewhere)
        hasty.until(lambda: elsewhere.calls)
        # As long as three tries take when there are any: two more deliveries to somebody who answers 500 first.
        receiver.calls.clear()
        receiver.statuses = [500, 500, 200]
        submit(hasty_js, receiver)
        hasty.until(lambda: len(receiver.calls) == 3)
        assert len(elsewhere.calls) == 1


@pytest.mark.case(102)
def test_102_a_receiver_that_hangs_delays_nobody(hasty: Scripted, hasty_js: Child, receiver: Receiver) -> None:
    with receiving() as hanging:
        hanging.hangs = True
        submit(hasty_js, hanging)
        hasty.until(lambda: hanging.calls)
        submit(hasty_js, receiver)
        hasty.until(lambda: receiver.calls)
        # It was given up after its time, and asked again: the first call is still open.
        hasty.until(lambda: len(hanging.calls) >= 2)
        assert not hanging.released.is_set()


@pytest.mark.case(103)
def test_103_this_machine_is_not_called_by_default(server: Scripted, js: Child, receiver: Receiver) -> None:
    with pytest.raises(ClientFailed) as failure:
        submit(js, receiver)
    (told,) = failure.value.facts["body"]["detail"]
    assert (told["loc"], told["type"]) == (["query", "fal_webhook"], "webhook_not_allowed")
    assert receiver.calls == []


@pytest.mark.case(104)
def test_104_what_was_owed_at_a_restart_goes_out(start_server: StartServer, receiver: Receiver) -> None:
    server = start_server(*LOOPBACK, constants=SOON | {"server.jobs.webhooks.POLL_S": 3600})
    address = f"{DEV}?fal_webhook={quote(receiver.url, safe='')}"
    request_id = server.submit("a fox", endpoint=address)
    server.until_status(request_id, "COMPLETED")
    assert receiver.calls == []
    server.server.kill_everything()
    server.server.environment["SCRIPTED_CONSTANTS"] = json.dumps(SOON)
    server.server.start().wait_ready()
    server.until(lambda: receiver.calls)
    assert receiver.payloads[0]["request_id"] == request_id
