"""Webhooks from the outbox to a real receiver: payloads, signatures, retries, and what is not called at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.jobs import receivers, webhooks
from server.jobs.receivers import AT_ONCE_PER_RECEIVER, FIRST_SHARE, Receivers
from server.jobs.store.deliveries import WebhookDelivery
from server.jobs.store.errors import StoreError
from server.jobs.store.job import JobStatus, Outcome
from server.jobs.store.sqlite import SqliteStore
from server.jobs.webhooks import PAUSES_S
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve
from tests.server.receiver import Receiver, receiving
from tests.server.stores import REJECTED, new_job


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as received:
        yield received


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setattr(webhooks, "POLL_S", 0.01)
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.05,) * len(PAUSES_S))
    with serve(ApiNode(tmp_path, allow_private_cidrs=("127.0.0.0/8",))) as served:
        yield served


def submit(api: Api, url: str, **body: Any) -> str:
    address = f"/queue/fal-ai/flux/dev?fal_webhook={quote(url, safe='')}"
    return str(api.http.post(address, json={"prompt": "a fox"} | body).json()["request_id"])


def settled(api: Api) -> bool:
    store: Any = api.node.store
    return all(delivery.due_at is None for delivery in store._webhooks.values())


def test_tries_and_spacing_are_ten_in_two_hours() -> None:
    assert len(PAUSES_S) + 1 == 10
    assert sum(PAUSES_S) == 7200
    assert list(PAUSES_S) == sorted(PAUSES_S)


def test_the_schedule_is_fals_and_ends() -> None:
    assert [webhooks.pause_after(tries) for tries in range(1, 11)] == [*PAUSES_S, None]


def test_a_good_end_is_posted_once_with_the_result(api: Api, receiver: Receiver) -> None:
    job_id = submit(api, receiver.url)
    api.node.finish(api.node.claim())
    eventually(lambda: settled(api) and receiver.calls)
    ((headers, body),) = receiver.calls
    assert headers["content-type"] == "application/json"
    posted = json.loads(body)
    assert {name: posted[name] for name in ("request_id", "gateway_request_id", "status")} == {
        "request_id": job_id,
        "gateway_request_id": job_id,
        "status": "OK",
    }
    assert "error" not in posted
    assert posted["payload"] == api.http.get(f"/queue/fal-ai/flux/requests/{job_id}").json()
    assert api.http.get(posted["payload"]["images"][0]["url"]).status_code == 200


def verify_as_fal_documents(headers: dict[str, str], body: bytes, jwks: dict[str, Any]) -> None:
    """Receiver side, after fal's documentation: raises unless one of the keys made the signature."""
    names = ("request-id", "user-id", "timestamp")
    request_id, user_id, timestamp = (headers[f"x-fal-webhook-{name}"] for name in names)
    assert abs(int(timestamp) - time.time()) <= 300
    message = "\n".join([request_id, user_id, timestamp, hashlib.sha256(body).hexdigest()]).encode()
    (key,) = jwks["keys"]
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
    public.verify(bytes.fromhex(headers["x-fal-webhook-signature"]), message)


@pytest.mark.parametrize("path", ["/rest/.well-known/jwks.json", "/.well-known/jwks.json"])
def test_the_signature_verifies_with_the_published_keys(api: Api, receiver: Receiver, path: str) -> None:
    submit(api, receiver.url)
    api.node.finish(api.node.claim())
    eventually(lambda: receiver.calls)
    headers, body = receiver.calls[0]
    jwks = api.http.get(path).json()
    verify_as_fal_documents(headers, body, jwks)
    with pytest.raises(InvalidSignature):
        verify_as_fal_documents(headers, body + b" ", jwks)


def test_user_and_password_of_the_address_are_sent_as_basic_authentication(api: Api, receiver: Receiver) -> None:
    submit(api, receiver.url.replace("//", "//us%C3%A9r:p%40ss@"))
    api.node.finish(api.node.claim())
    eventually(lambda: receiver.calls)
    headers, _ = receiver.calls[0]
    assert headers["authorization"] == "Basic " + base64.b64encode("usér:p@ss".encode()).decode()
    assert headers["host"] == receiver.url.split("/")[2]


def test_a_wrong_input_is_posted_as_an_error_with_its_detail(api: Api, receiver: Receiver) -> None:
    submit(api, receiver.url, num_images=9)
    eventually(lambda: receiver.calls)
    posted = json.loads(receiver.calls[0][1])
    assert (posted["status"], posted["error"]) == ("ERROR", "Invalid status code: 422")
    assert posted["payload"]["detail"][0]["loc"] == ["body", "num_images"]


def test_a_platform_failure_is_posted_as_an_error(api: Api, receiver: Receiver) -> None:
    submit(api, receiver.url)
    body = {"detail": "gone", "error_type": "runner_disconnected"}
    api.node.finish(api.node.claim(), Outcome(JobStatus.FAILED, 503, body, "gone", "runner_disconnected"))
    eventually(lambda: receiver.calls)
    assert json.loads(receiver.calls[0][1])["payload"] == body


def test_errors_are_tried_again_until_taken(api: Api, receiver: Receiver) -> None:
    receiver.statuses = [500, 400, 200]
    submit(api, receiver.url, num_images=9)
    eventually(lambda: len(receiver.calls) == 3 and settled(api))
    assert len({headers["x-fal-webhook-request-id"] for headers, _ in receiver.calls}) == 1


def test_after_ten_tries_it_is_given_up(api: Api, receiver: Receiver) -> None:
    receiver.statuses = [500]
    submit(api, receiver.url, num_images=9)
    eventually(lambda: settled(api), within_s=10)
    assert len(receiver.calls) == 10


def test_a_redirect_is_final(api: Api, receiver: Receiver) -> None:
    receiver.statuses = [302]
    submit(api, receiver.url, num_images=9)
    eventually(lambda: settled(api))
    assert len(receiver.calls) == 1


def test_a_receiver_that_hangs_is_retried_and_delays_nobody(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.5)
    receiver.hangs = True
    submit(api, receiver.url, num_images=9)
    eventually(lambda: len(receiver.calls) == 1)
    receiver.hangs = False
    submit(api, receiver.url, num_images=9)
    eventually(lambda: len(receiver.calls) == 2, within_s=0.4)
    eventually(lambda: len(receiver.calls) == 3)


def test_a_receiver_that_hangs_holds_only_its_share(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "AT_ONCE", 3)
    monkeypatch.setattr(receivers, "UNPROVEN_AT_ONCE", 3)
    receiver.hangs = True
    hanging = {submit(api, receiver.url, num_images=9) for _ in range(4)}
    eventually(lambda: len(receiver.calls) == 2, within_s=30)
    with receiving() as other:
        for number in range(1, 4):
            submit(api, other.url, num_images=9)
            eventually(lambda number=number: len(other.calls) == number, within_s=30)  # type: ignore[misc]
    assert len(receiver.calls) == 2
    receiver.hangs = False
    receiver.released.set()
    eventually(lambda: {payload["request_id"] for payload in receiver.payloads} == hanging, within_s=30)


def test_a_delivery_that_ends_during_a_look_at_the_outbox_is_not_made_again(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    ended = threading.Event()
    looks: list[int] = []
    begin, end, look = Receivers.begin, Receivers.end, api.node.store.due_webhooks

    def note_begin(self: Receivers, whose: str) -> None:
        begun.append(whose)
        begin(self, whose)

    def note_end(self: Receivers, whose: str, has_answered: bool) -> None:
        end(self, whose, has_answered)
        ended.set()

    def look_long(*arguments: int) -> list[WebhookDelivery]:
        found = look(*arguments)
        if found:
            receiver.released.set()
            ended.wait(30)
        looks.append(len(found))
        return found

    monkeypatch.setattr(Receivers, "begin", note_begin)
    monkeypatch.setattr(Receivers, "end", note_end)
    receiver.hangs = True
    owe(api, receiver.url)
    eventually(lambda: receiver.calls)
    monkeypatch.setattr(api.node.store, "due_webhooks", look_long)
    eventually(lambda: 0 in looks, within_s=30)
    assert len(looks) > 1, "no look saw the delivery as due"
    assert len(begun) == 1


def owe(api: Api, url: str) -> str:
    """An ended job that owes a webhook, past the checks of a submit."""
    return api.node.store.enqueue(new_job(params=None, outcome=REJECTED, webhook_url=url)).id


@pytest.mark.parametrize("host", ["a..b", ".example.com", "xn--a", "a" * 64 + ".test"])
def test_a_malformed_host_is_given_up_at_once_and_stops_nobody(api: Api, receiver: Receiver, host: str) -> None:
    broken = [owe(api, f"http://{host}/x") for _ in range(5)]
    healthy = owe(api, receiver.url)
    eventually(lambda: settled(api), within_s=30)
    assert [payload["request_id"] for payload in receiver.payloads] == [healthy]
    for job_id in broken:
        (only,) = api.node.store.webhook_tries(job_id)
        assert (only.verdict, only.http_status) == ("given up", None)
        assert "malformed address" in only.note


def test_a_fault_of_the_servers_own_costs_one_delivery_its_tries(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = webhooks.Webhooks._post

    async def fail(self: Any, url: str, job: Any) -> Any:
        if "broken" in url:
            raise RuntimeError("nobody thought of this")
        return await post(self, url, job)

    monkeypatch.setattr(webhooks.Webhooks, "_post", fail)
    broken, healthy = owe(api, "http://broken.test/"), owe(api, receiver.url)
    eventually(lambda: settled(api), within_s=30)
    assert [payload["request_id"] for payload in receiver.payloads] == [healthy]
    assert [entry.verdict for entry in api.node.store.webhook_tries(broken)] == [*["again"] * 9, "given up"]


def test_what_one_receiver_is_owed_hides_nobodys(api: Api, receiver: Receiver) -> None:
    """More than the window of rows that are looked at."""
    receiver.hangs = True
    for _ in range(webhooks.WINDOW + 100):
        owe(api, receiver.url)
    with receiving() as other:
        healthy = owe(api, other.url)
        eventually(lambda: other.calls, within_s=30)
        assert [payload["request_id"] for payload in other.payloads] == [healthy]
    assert len(receiver.calls) <= FIRST_SHARE


def test_several_receivers_that_hang_leave_room(api: Api) -> None:
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(receiving()) for _ in range(6)]
        for receiver in hanging:
            receiver.hangs = True
            for _ in range(40):
                owe(api, receiver.url)
        eventually(lambda: all(receiver.calls for receiver in hanging), within_s=30)
        other = stack.enter_context(receiving())
        healthy = {owe(api, other.url) for _ in range(10)}
        eventually(lambda: {payload["request_id"] for payload in other.payloads} == healthy, within_s=10)
        assert all(len(receiver.calls) == FIRST_SHARE for receiver in hanging)


def test_the_share_of_a_receiver_grows_with_answers_and_falls_without() -> None:
    shares = Receivers()

    def room() -> int:
        begun = 0
        while shares.has_room("a"):
            shares.begin("a")
            begun += 1
        for _ in range(begun):
            shares._busy["a"] -= 1
        return begun

    assert room() == FIRST_SHARE
    grown = []
    for _ in range(5):
        shares.begin("a")
        shares.end("a", has_answered=True)
        grown.append(room())
    assert grown == [4, 8, 16, AT_ONCE_PER_RECEIVER, AT_ONCE_PER_RECEIVER]
    shares.begin("a")
    shares.end("a", has_answered=False)
    assert room() == 1


def test_a_refusal_is_an_answer_and_silence_is_none(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: dict[str, list[bool]] = {}
    end = Receivers.end

    def note(self: Receivers, whose: str, has_answered: bool) -> None:
        ends.setdefault(whose, []).append(has_answered)
        end(self, whose, has_answered)

    monkeypatch.setattr(Receivers, "end", note)
    receiver.statuses = [500, 200]
    submit(api, receiver.url, num_images=9)
    submit(api, "http://127.0.0.1:1/nobody", num_images=9)
    there = receivers.receiver_of(receiver.url)
    eventually(lambda: len(ends.get(there, [])) == 2 and "127.0.0.1:1" in ends)
    assert ends[there] == [True, True]
    assert ends["127.0.0.1:1"][0] is False


def test_no_more_than_so_many_receivers_are_remembered_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receivers, "REMEMBERED", 2)
    shares = Receivers()
    for receiver in "abac":
        shares.begin(receiver)
        shares.end(receiver, has_answered=False)
    assert {receiver: shares._share(receiver) for receiver in "abc"} == {"a": 1, "b": FIRST_SHARE, "c": 1}


def test_receivers_that_never_answer_leave_half_of_the_places_to_those_that_do() -> None:
    shares = Receivers()
    shares.begin("proven")
    shares.end("proven", has_answered=True)
    for number in range(1000):
        if shares.has_room(f"unknown-{number}"):
            shares.begin(f"unknown-{number}")
    assert shares._busy.total() == receivers.UNPROVEN_AT_ONCE
    assert not shares.has_room("unknown")
    assert shares.has_room("proven")


def test_no_more_than_a_hundred_deliveries_are_under_way() -> None:
    shares = Receivers()
    for number in range(receivers.AT_ONCE - 1):
        shares.begin(f"receiver-{number}")
    assert not shares.is_full
    shares.begin("the last one")
    assert shares.is_full
    assert not shares.has_room("proven")
    shares.end("the last one", has_answered=True)
    assert not shares.is_full


def test_a_receiver_has_fifteen_seconds_and_gets_one_copy(api: Api, receiver: Receiver) -> None:
    """The HTTP client's own limit would be five."""
    assert webhooks.TIMEOUT_S == 15
    receiver.hangs = True
    owe(api, receiver.url)
    eventually(lambda: receiver.calls)
    assert not receiver.released.wait(5.5)
    receiver.released.set()
    eventually(lambda: settled(api))
    assert len(receiver.calls) == 1


def test_every_try_is_logged_with_what_was_seen_and_how_long_it_took(api: Api, receiver: Receiver) -> None:
    receiver.statuses = [500, 200]
    job_id = submit(api, receiver.url, num_images=9)
    eventually(lambda: settled(api) and len(receiver.calls) == 2, within_s=30)
    first, second = api.node.store.webhook_tries(job_id)
    assert (first.http_status, first.note, first.verdict) == (500, "HTTP 500", "again")
    assert (second.http_status, second.note, second.verdict) == (200, "HTTP 200", "delivered")
    assert first.began_at + first.duration_s <= second.began_at
    assert min(first.duration_s, second.duration_s) > 0


def test_a_redelivery_has_the_same_id_and_payload_and_a_signature_of_its_own(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(api, receiver.url, num_images=9)
    eventually(lambda: settled(api) and receiver.calls, within_s=30)
    earlier = time.time() - 100
    monkeypatch.setattr(webhooks.time, "time", lambda: earlier)
    api.node.store.redeliver_webhook(job_id)
    eventually(lambda: len(receiver.calls) == 2, within_s=30)
    (first, body), (again, same_body) = receiver.calls
    assert body == same_body
    names = [f"x-fal-webhook-{name}" for name in ("request-id", "timestamp", "signature")]
    assert first[names[0]] == again[names[0]] == job_id
    assert again[names[1]] == str(int(earlier))
    assert first[names[2]] != again[names[2]]
    jwks = api.http.get("/.well-known/jwks.json").json()
    for headers in (first, again):
        verify_as_fal_documents(headers, body, jwks)


def test_a_dead_receiver_is_tried_again(api: Api) -> None:
    submit(api, "http://127.0.0.1:9/hook", num_images=9)
    store: Any = api.node.store
    eventually(lambda: any(delivery.tries >= 2 for delivery in store._webhooks.values()))
    (delivery,) = store._webhooks.values()
    assert "ConnectError" in delivery.note


def test_this_machine_is_not_called_by_default(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a name that only a name server knows to lead here."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *rest: Any, **more: Any) -> Any:
        is_asked = host == "inside.test" and "flags" not in more
        return real("127.0.0.1" if is_asked else host, *rest, **more)

    monkeypatch.setattr(webhooks, "POLL_S", 0.01)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with serve(ApiNode(tmp_path)) as api:
        submit(api, receiver.url.replace("127.0.0.1", "inside.test"), num_images=9)
        store: Any = api.node.store
        eventually(lambda: any(delivery.tries for delivery in store._webhooks.values()))
        (delivery,) = store._webhooks.values()
        assert delivery.due_at is None
        assert "--allow-private-cidr" in delivery.note
    assert receiver.calls == []


def test_what_was_owed_at_a_stop_goes_out_after_the_restart(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "POLL_S", 60.0)
    with serve(ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"), allow_private_cidrs=("127.0.0.1/32",))) as api:
        job_id = submit(api, receiver.url, num_images=9)
        api.node.store.close()
    assert receiver.calls == []
    with serve(ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"), allow_private_cidrs=("127.0.0.1/32",))) as api:
        eventually(lambda: receiver.calls)
    assert receiver.calls[0][0]["x-fal-webhook-request-id"] == job_id


def test_a_store_that_is_away_is_told_in_one_line(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    def away(*_: object) -> list[WebhookDelivery]:
        looks.append(1)
        raise StoreError("the database is away")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(api.node.store, "due_webhooks", away)
        submit(api, receiver.url)
        api.node.finish(api.node.claim())
        eventually(lambda: len(looks) >= 3)
    eventually(lambda: receiver.calls)
    told = [record for record in caplog.records if record.name == "fluxserve.webhooks" and record.levelname == "ERROR"]
    assert [record.getMessage() for record in told] == [
        "the outbox cannot be read, it will be tried again: the database is away"
    ]
    assert told[0].exc_info is None


@pytest.mark.parametrize("operation", ["get", "settle_webhook"])
def test_a_webhook_that_meets_a_store_that_is_away_is_delivered_later(
    api: Api, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, operation: str
) -> None:
    due, real = api.node.store.due_webhooks, getattr(api.node.store, operation)

    def away_once(*arguments: Any) -> Any:
        monkeypatch.setattr(api.node.store, operation, real)
        raise StoreError("the database is away")

    def then_away(*arguments: Any) -> list[WebhookDelivery]:
        if found := due(*arguments):
            monkeypatch.setattr(api.node.store, "due_webhooks", due)
            monkeypatch.setattr(api.node.store, operation, away_once)
        return found

    monkeypatch.setattr(api.node.store, "due_webhooks", then_away)
    submit(api, receiver.url)
    api.node.finish(api.node.claim())
    eventually(lambda: receiver.calls and settled(api))
    told = [record for record in caplog.records if record.name in ("fluxserve.webhooks", "asyncio")]
    (error,) = (record for record in told if record.levelname == "ERROR")
    assert "the database is away" in error.getMessage()
    assert error.exc_info is None
