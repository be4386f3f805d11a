"""Two keys on one server: over every route, what is the one's is to the other exactly as if it were not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from server.gateway.key_file import KeyFile, KeyScope
from server.http import pacing
from server.http.pacing import LARGE, Lanes
from server.jobs.limits import Limits
from server.jobs.store.job import JobStatus
from server.jobs.store.memory import MemoryStore
from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve

ANN, BOB = "Key ann:secret", "Key bob:secret"
UNKNOWN = "00000000-0000-4000-8000-000000000000"
ESTIMATE = "/v1/models/pricing/estimate"
HIDE = {"X-Fal-Object-Lifecycle": '{"initial_acl": {"default": "hide"}}'}


@pytest.fixture(params=["memory", "sqlite"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.db")
    with serve(ApiNode(tmp_path, store, api_keys=("ann:secret", "bob:secret"))) as served:
        yield served
    store.close()


def ask(api: Api, key: str, method: str, path: str, **about: Any) -> httpx.Response:
    return api.http.request(method, path, headers={"authorization": key} | about.pop("headers", {}), **about)


def submit(api: Api, key: str, **body: Any) -> str:
    answer = ask(api, key, "POST", "/queue/fal-ai/flux/dev", json={"prompt": "x"} | body)
    return str(answer.json()["request_id"])


def test_large_bodies_of_a_key_keep_a_distance_while_others_call(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "PACE_S", 1000.0)
    monkeypatch.setattr(pacing, "COMPANY_S", 1000.0)
    large = {"prompt": "x", "image_url": "data:image/png;base64," + LARGE * "A"}
    assert ask(api, BOB, "GET", "/v1/models").status_code == 200
    assert ask(api, ANN, "POST", ESTIMATE, json=large).status_code == 200
    with pytest.raises(httpx.ReadTimeout):
        ask(api, ANN, "POST", ESTIMATE, json=large, timeout=0.3)
    with pytest.raises(httpx.ReadTimeout):
        ask(api, ANN, "POST", ESTIMATE, content=iter([b" " * LARGE, b"{}"]), timeout=0.3)
    assert ask(api, ANN, "POST", ESTIMATE, content=iter([b"{}"])).status_code == 200
    assert ask(api, ANN, "POST", ESTIMATE, json={"prompt": "x"}).status_code == 200
    assert ask(api, BOB, "POST", ESTIMATE, json=large).status_code == 200


def test_large_messages_of_a_socket_keep_the_same_distance(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "PACE_S", 1000.0)
    monkeypatch.setattr(pacing, "COMPANY_S", 1000.0)
    large = {"prompt": 5, "image_url": "data:image/png;base64," + LARGE * "A"}
    small = json.dumps({"prompt": 5})
    assert ask(api, BOB, "GET", "/v1/models").status_code == 200
    with (
        _realtime(api, ANN) as socket,
        _realtime(api, ANN) as other,
        _realtime(api, BOB) as bobs,
    ):
        for each in (socket, other, bobs):
            each.send(small)
            assert json.loads(each.recv(timeout=5))["error"] == "INVALID_INPUT"
        for each in (socket, bobs):
            each.send(json.dumps(large))
            assert json.loads(each.recv(timeout=5))["error"] == "INVALID_INPUT"
        other.send(json.dumps(large))
        with pytest.raises(TimeoutError):
            other.recv(timeout=0.3)
        with pytest.raises(httpx.ReadTimeout):
            ask(api, ANN, "POST", ESTIMATE, json=large, timeout=0.3)
        socket.send(small)
        assert json.loads(socket.recv(timeout=5))["error"] == "INVALID_INPUT"


def _realtime(api: Api, key: str) -> ClientConnection:
    url = f"ws{api.url[4:]}/run/fal-ai/flux/dev/realtime"
    return connect(url, additional_headers={"authorization": key}, close_timeout=0.1)


def in_state(api: Api, state: JobStatus) -> str:
    """A request of Ann's that waits, runs, or has ended."""
    job_id = submit(api, ANN)
    if state is not JobStatus.QUEUED:
        job = api.node.claim()
        assert job.id == job_id
        if state is JobStatus.COMPLETED:
            api.node.finish(job)
    return job_id


FOLLOW_UPS = [
    ("GET", "/queue/fal-ai/flux/requests/{}/status"),
    ("GET", "/queue/fal-ai/flux/requests/{}/status?logs=1"),
    ("GET", "/queue/fal-ai/flux/requests/{}/status/stream"),
    ("GET", "/queue/fal-ai/flux/requests/{}"),
    ("HEAD", "/queue/fal-ai/flux/requests/{}/status"),
    ("PUT", "/queue/fal-ai/flux/requests/{}/cancel"),
    ("GET", "/run/fal-ai/flux/requests/{}"),
    ("GET", "/fal-ai/flux/requests/{}/status"),
]


@pytest.mark.parametrize("state", [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.COMPLETED])
def test_a_strangers_request_answers_byte_for_byte_like_an_unknown_one(api: Api, state: JobStatus) -> None:
    job_id = in_state(api, state)
    for method, path in FOLLOW_UPS:
        theirs, none = (ask(api, BOB, method, path.format(which)) for which in (job_id, UNKNOWN))
        assert theirs.status_code == none.status_code == 404, path
        assert theirs.content == none.content
        assert _but_id(theirs, job_id) == _but_id(none, UNKNOWN)
    job = api.node.store.get(job_id)
    assert job is not None
    assert (job.status, job.cancel_requested) == (state, False)
    assert ask(api, ANN, "GET", FOLLOW_UPS[0][1].format(job_id)).status_code in (200, 202)


def _but_id(answer: httpx.Response, job_id: str) -> dict[str, str]:
    return {name: value.replace(job_id, "ID") for name, value in answer.headers.items() if name != "date"}


def test_the_proxy_endpoint_tells_strangers_nothing_either(api: Api) -> None:
    job_id = in_state(api, JobStatus.COMPLETED)
    answers = []
    for which in (job_id, UNKNOWN):
        url = f"https://queue.fal.run/fal-ai/flux/requests/{which}/status"
        answers.append(ask(api, BOB, "GET", "/api/fal/proxy", headers={"x-fal-target-url": url}))
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].content == answers[1].content


def test_a_hidden_file_is_read_with_its_owners_key_alone(api: Api) -> None:
    sent = ask(api, ANN, "POST", "/files/upload", content=b"mine", headers=HIDE)
    path = httpx.URL(sent.json()["access_url"]).path
    none = "/files/" + "0" * 32 + ".bin"
    assert ask(api, ANN, "GET", path).content == b"mine"
    assert ask(api, BOB, "GET", path).content == ask(api, BOB, "GET", none).content
    assert ask(api, BOB, "GET", path).status_code == api.http.get(path).status_code == 404
    assert api.node.objects.find(path, "another") is None, "nor as the picture of a request"


def test_every_way_to_send_a_file_makes_it_the_callers(api: Api) -> None:
    place = ask(api, ANN, "POST", "/rest/storage/upload/initiate", json={"file_name": "a.png"}, headers=HIDE).json()
    assert api.http.put(place["upload_url"], content=b"mine").status_code == 200
    token = "Bearer " + ask(api, ANN, "POST", "/rest/storage/auth/token", json={}).json()["token"]
    whole = ask(api, token, "POST", "/files/upload", content=b"mine", headers=HIDE).json()
    begun = ask(api, token, "POST", "/files/upload/multipart", headers=HIDE).json()
    parts = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    part = api.http.put(f"{parts}/1", content=b"mine").json()
    assert api.http.post(f"{parts}/complete", json={"parts": [part]}).status_code == 200
    for url in (place["file_url"], whole["access_url"], begun["access_url"]):
        assert ask(api, ANN, "GET", url).content == b"mine"
        assert ask(api, BOB, "GET", url).status_code == 404


def test_a_realtime_token_works_as_its_key(api: Api) -> None:
    token = ask(api, ANN, "POST", "/rest/tokens/", json={"allowed_apps": ["fal-ai/flux"]}).json()
    job_id = in_state(api, JobStatus.COMPLETED)
    path = f"/queue/fal-ai/flux/requests/{job_id}?fal_jwt_token={token}"
    assert api.http.get(path).status_code == 200
    others = ask(api, BOB, "POST", "/rest/tokens/", json={"allowed_apps": ["fal-ai/flux"]}).json()
    assert api.http.get(path.replace(token, others)).status_code == 404
    with connect(f"ws{api.url[4:]}/run/fal-ai/flux/dev/realtime?fal_jwt_token={token}") as socket:
        socket.send(json.dumps({"prompt": "x"}))
        eventually(lambda: api.node.store.counts()[JobStatus.QUEUED])
        job = api.node.claim()
        api.node.finish(job)
        socket.recv(timeout=5)
    mine = api.node.store.get(job_id)
    assert mine is not None
    assert job.tenant == mine.tenant != ""


@pytest.mark.parametrize("path", ["/run/fal-ai/flux/dev", "/run/fal-ai/flux/dev/stream", "/v1/images/generations"])
def test_every_way_to_draw_now_makes_a_job_of_the_callers(api: Api, path: str) -> None:
    submit(api, ANN)
    mine = api.node.claim()
    body = {"prompt": "x", "model": "fal-ai/flux/dev"}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, api, ANN, "POST", path, json=body)
        eventually(lambda: api.node.store.counts()[JobStatus.QUEUED])
        job = api.node.claim()
        api.node.finish(job)
        assert answer.result().status_code == 200
    assert job.tenant == mine.tenant != ""


def test_a_rejected_input_is_its_owners_too(api: Api) -> None:
    rejected = submit(api, ANN, num_images="many")
    assert ask(api, BOB, "GET", f"/queue/fal-ai/flux/requests/{rejected}").status_code == 404
    assert ask(api, ANN, "GET", f"/queue/fal-ai/flux/requests/{rejected}").status_code == 422


# Issued keys over HTTP


@pytest.fixture
def issued(tmp_path: Path) -> Iterator[tuple[Api, KeyFile]]:
    """A server whose keys are all issued, and their file."""
    file = KeyFile(tmp_path / "keys.json")
    file.issue("the first one")
    with serve(ApiNode(tmp_path)) as served:
        yield served, file


def test_a_revoked_key_ends_its_streams_sockets_and_tokens(issued: tuple[Api, KeyFile]) -> None:
    api, file = issued
    key, stored = file.issue()
    key = f"Key {key}"
    job_id = submit(api, key)
    token = ask(api, key, "POST", "/rest/tokens/", json={"allowed_apps": ["flux"]}).json()
    upload = ask(api, key, "POST", "/rest/storage/upload/initiate", json={}).json()["upload_url"]
    stream = f"/queue/fal-ai/flux/requests/{job_id}/status/stream"
    with (
        api.http.stream("GET", stream, headers={"authorization": key}) as events,
        connect(f"ws{api.url[4:]}/run/fal-ai/flux/dev/realtime?fal_jwt_token={token}") as socket,
    ):
        file.revoke(stored.id)
        assert b"IN_QUEUE" in b"".join(events.iter_raw()), "it ends though the request has not"
        socket.send(json.dumps({"prompt": "x"}))
        assert json.loads(socket.recv(timeout=5))["type"] == "x-fal-error"
    assert ask(api, key, "GET", stream).status_code == 401
    assert api.http.get(f"{stream}?fal_jwt_token={token}").status_code == 401
    assert api.http.put(upload, content=b"x").status_code == 403
    job = api.node.store.get(job_id)
    assert job is not None
    assert job.status is JobStatus.QUEUED, "what it has submitted runs on"


CALLS = [
    ("POST", "/run/fal-ai/flux/dev", KeyScope.RUN),
    ("POST", "/v1/images/generations", KeyScope.RUN),
    ("POST", "/rest/tokens/", KeyScope.RUN),
    ("POST", "/queue/fal-ai/flux/dev", KeyScope.QUEUE),
    ("GET", "/queue/fal-ai/flux/requests/x/status", KeyScope.QUEUE),
    ("POST", "/files/upload", KeyScope.FILES),
    ("POST", "/rest/storage/upload/initiate", KeyScope.FILES),
    ("GET", "/metrics", KeyScope.ADMIN),
    ("GET", "/health", KeyScope.ADMIN),
    ("GET", "/v1/workers", KeyScope.ADMIN),
    ("POST", "/v1/workers/sleep", KeyScope.ADMIN),
    ("POST", "/v1/workers/wake/", KeyScope.ADMIN),
]


@pytest.mark.parametrize("scope", list(KeyScope))
def test_a_key_does_what_its_scopes_say_and_no_more(tmp_path: Path, scope: KeyScope) -> None:
    key, _ = KeyFile(tmp_path / "keys.json").issue(scopes=[scope])
    elsewhere = {"x-forwarded-for": "203.0.113.9"}
    with serve(ApiNode(tmp_path)) as api:
        for method, path, wanted in CALLS:
            answer = ask(api, f"Key {key}", method, path, json={"prompt": 5}, headers=elsewhere)
            assert (answer.status_code == 403) is (wanted is not scope), (path, answer.text)


def test_who_submits_too_fast_is_told_when_to_come_back(tmp_path: Path) -> None:
    key, _ = KeyFile(tmp_path / "keys.json").issue(limits=Limits(per_minute=2))
    with serve(ApiNode(tmp_path)) as api:
        answers = [ask(api, f"Key {key}", "POST", "/queue/fal-ai/flux/dev", json={"prompt": "x"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 0 < int(answers[2].headers["retry-after"]) <= 30
    assert answers[2].json()["error_type"] == "rate_limit_exceeded"


def test_who_has_too_much_already_is_refused_unread_and_waits_in_its_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused: list[str] = []

    async def note(lanes: Lanes, whose: str, seconds: float = 0.0) -> None:
        paused.append(whose)

    monkeypatch.setattr(Lanes, "pause", note)
    key, issued = KeyFile(tmp_path / "keys.json").issue(limits=Limits(per_minute=1))
    with serve(ApiNode(tmp_path)) as api:
        statuses = [
            ask(api, f"Key {key}", "POST", "/queue/fal-ai/flux/dev", content=body).status_code
            for body in (b"{", b'{"prompt": "x"}', b"{")
        ]
    assert statuses == [422, 200, 429], "what is broken is not read any more"
    assert paused == [issued.tenant]


def test_who_keeps_all_it_may_sends_and_submits_no_more(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    key, other = (f"Key {file.issue(limits=Limits(storage_bytes=10))[0]}" for _ in range(2))
    with serve(ApiNode(tmp_path)) as api:
        first = ask(api, key, "POST", "/files/upload", content=b"12345678")
        assert first.status_code == 200
        assert ask(api, key, "POST", "/files/upload", content=b"123").status_code == 413
        chunked = iter([b"1", b"23"])
        assert ask(api, key, "POST", "/files/upload", content=chunked).status_code == 413, "nor by not saying how long"
        assert ask(api, key, "POST", "/files/upload", content=b"12").status_code == 200
        refused = ask(api, key, "POST", "/queue/fal-ai/flux/dev", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error_type"]) == (403, "storage_limit_exceeded")
        assert ask(api, other, "POST", "/files/upload", content=b"123").status_code == 200
        api.node.objects.delete(first.json()["access_url"].rpartition("/")[2])
        assert ask(api, key, "POST", "/files/upload", content=b"123").status_code == 200
        api.node.objects.sweep()
        assert ask(api, key, "POST", "/files/upload", content=b"123456").status_code == 413, "counted anew"


def test_who_tries_keys_is_slowed_down(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, api_keys=("ann:secret",))) as api:
        elsewhere = {"x-forwarded-for": "203.0.113.9"}
        answers = [ask(api, f"Key guess{n}", "GET", "/v1/models", headers=elsewhere).status_code for n in range(40)]
        assert (answers[0], answers[-1]) == (401, 429)
        assert ask(api, ANN, "GET", "/v1/models", headers=elsewhere).status_code == 429, "it may be a guess, too"
        assert ask(api, ANN, "GET", "/v1/models").status_code == 200
