"""Realtime over real sockets: encodings, errors, order, tokens, idleness."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from server.gateway.tokens import Tokens
from server.jobs.store.job import Job, JobStatus
from server.routes.fal import realtime
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve

PATH = "/run/fal-ai/flux/dev/realtime"


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Api]:
    with serve(ApiNode(tmp_path, api_keys=("id:secret",))) as served:
        yield served


@pytest.fixture
def worker(api: Api) -> Iterator[list[Job]]:
    """Ends every job as soon as it is queued; collects what it saw."""
    with working(api) as seen:
        yield seen


class working:
    """A thread that plays the worker."""

    def __init__(self, api: Api) -> None:
        self.api, self.seen, self.stop = api, list[Job](), threading.Event()
        self.thread = threading.Thread(target=self.loop)

    def loop(self) -> None:
        while not self.stop.wait(0.005):
            while self.api.node.store.counts().get(JobStatus.QUEUED):
                job = self.api.node.claim()
                self.seen.append(job)
                self.api.node.finish(job)

    def __enter__(self) -> list[Job]:
        self.thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def opened(api: Api, path: str = PATH, **headers: str) -> ClientConnection:
    return connect(api.url.replace("http", "ws") + path, additional_headers=headers)


def ask(socket: ClientConnection, **body: Any) -> dict[str, Any]:
    socket.send(msgpack.packb({"prompt": "a fox"} | body))
    answer = socket.recv(timeout=10)
    return dict(msgpack.unpackb(answer) if isinstance(answer, bytes) else json.loads(answer))


def ask_json(socket: ClientConnection, **body: Any) -> dict[str, Any]:
    socket.send(json.dumps({"prompt": "a fox"} | body))
    answer = socket.recv(timeout=10)
    assert isinstance(answer, str)
    return dict(json.loads(answer))


@pytest.mark.parametrize("path", [PATH, "/fal-ai/flux/dev/realtime", "/run/fal-ai/flux/dev"])
def test_each_answer_has_the_encoding_of_its_question(api: Api, worker: list[Job], path: str) -> None:
    with opened(api, path) as socket:
        socket.send(msgpack.packb({"prompt": "a fox", "seed": 1}))
        answer = socket.recv(timeout=10)
        assert isinstance(answer, bytes)
        assert msgpack.unpackb(answer)["seed"] == 1
        assert ask_json(socket, seed=2)["seed"] == 2
        result = ask(socket, seed=3)
        assert result["images"][0]["url"].startswith(f"{api.url}/files/")
    assert [job.params["seed"] for job in worker if job.params] == [1, 2, 3]
    assert all(job.is_ephemeral for job in worker)


@pytest.mark.parametrize("path", ["/ws/fal-ai/flux/dev", "/ws/fal-ai/flux/dev/"])
def test_http_over_a_socket(api: Api, worker: list[Job], path: str) -> None:
    with opened(api, path) as socket:
        for body, status in (({"prompt": "x", "seed": 1}, 200), ({"prompt": "x", "num_images": 9}, 422)):
            socket.send(json.dumps(body))
            start, answer, end = (json.loads(socket.recv(timeout=10)) for _ in range(3))
            assert (start["type"], start["status"], end["type"], end["status"]) == ("start", status, "end", status)
            assert start["request_id"] == end["request_id"] == start["headers"]["x-fal-request-id"]
            assert end["time_to_first_byte_seconds"] >= 0
            assert answer.get("seed") == body.get("seed")
    assert "num_images" in str(answer["detail"])


def test_a_wrong_input_leaves_the_socket_usable(api: Api, worker: list[Job]) -> None:
    with opened(api) as socket:
        error = ask(socket, num_images=9)  # sent as msgpack; errors are text, where fal_client raises them
        assert (error["type"], error["error"]) == ("x-fal-error", "INVALID_INPUT")
        assert error["reason"] == "num_images: Input should be less than or equal to 4"
        for data in (b"\xc1", b"\x93\x01\x02\x03", b"\xc7\x01\x05x", b"\x91" * 500, b""):
            socket.send(data)
            assert json.loads(socket.recv(timeout=10))["type"] == "x-fal-error"
        for text in ("{", "[]", '{"a": NaN}'):
            socket.send(text)
            assert json.loads(socket.recv(timeout=10))["error"] == "INVALID_INPUT"
        assert ask(socket)["has_nsfw_concepts"] == [False]


def test_binary_fields_become_data_uris(api: Api, worker: list[Job]) -> None:
    with opened(api) as socket:
        ask(socket, mask=b"\x00\x01")
    assert worker[0].input["mask"] == "data:application/octet-stream;base64,AAE="


def test_of_a_burst_the_newest_wait(api: Api) -> None:
    with opened(api, f"{PATH}?max_buffering=1") as socket:
        socket.send(json.dumps({"prompt": "x", "seed": 0}))
        eventually(lambda: api.node.store.counts().get(JobStatus.QUEUED))
        for seed in range(1, 10):
            socket.send(json.dumps({"prompt": "x", "seed": seed}))
        socket.ping().wait(5)  # all have arrived
        with working(api):
            seeds = [json.loads(socket.recv(timeout=10))["seed"] for _ in range(2)]
    assert seeds == [0, 9]


def test_a_burst_in_one_packet_keeps_its_first(api: Api) -> None:
    with opened(api, f"{PATH}?max_buffering=1") as socket:
        with socket.protocol_mutex:
            for seed in range(10):
                socket.protocol.send_text(json.dumps({"prompt": "x", "seed": seed}).encode())
            socket.send_data()
        socket.ping().wait(5)
        with working(api):
            seeds = [json.loads(socket.recv(timeout=10))["seed"] for _ in range(2)]
    assert seeds == [0, 9]


def test_a_client_that_leaves_cancels_what_runs(api: Api) -> None:
    with opened(api) as socket:
        socket.send(json.dumps({"prompt": "x"}))
        eventually(lambda: api.node.store.counts().get(JobStatus.QUEUED))
        job = api.node.claim()

    def flagged() -> bool:
        row = api.node.store.get(job.id)
        return row is not None and row.cancel_requested

    eventually(flagged)


def test_an_idle_socket_is_closed_kindly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "IDLE_S", 0.05)
    with serve(ApiNode(tmp_path)) as api, opened(api) as socket:
        assert json.loads(socket.recv(timeout=10))["error"] == "TIMEOUT"
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=10)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1000


@pytest.mark.parametrize(("sent", "echoed"), [(b"", 1000), (b"\x03\xe8bye", 1000), (b"\x03\xe9", 1001)])
def test_a_close_without_a_code_is_answered_with_one(api: Api, sent: bytes, echoed: int) -> None:
    """What a browser's `close()` sends; the client library here would always name a code itself."""
    with opened(api) as socket:
        with socket.protocol_mutex:
            socket.protocol.send_frame(Frame(Opcode.CLOSE, sent))
            socket.send_data()
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=10)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == echoed


@pytest.mark.parametrize(
    "path", ["/run/fal-ai/unknown/realtime", "/run/fal-ai/flux/dev/other", "/queue/fal-ai/flux/dev"]
)
def test_other_addresses_are_refused_at_the_handshake(api: Api, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        opened(api, path)
    assert caught.value.response.status_code == 403


def token(api: Api, app: str, seconds: float = 60) -> str:
    body = {"allowed_apps": [app], "token_expiration": seconds}
    return str(api.http.post("/rest/tokens/", json=body, headers={"authorization": "Key id:secret"}).json())


def test_a_locked_server_takes_a_key_or_a_token_of_that_app(locked: Api) -> None:
    with working(locked):
        with opened(locked, authorization="Key id:secret") as socket:
            assert ask(socket, seed=1)["seed"] == 1
        for app in ("flux", "fal-ai/flux", "fal-ai/flux/dev/realtime"):
            with opened(locked, f"{PATH}?fal_jwt_token={token(locked, app)}") as socket:
                assert ask(socket, seed=2)["seed"] == 2


def refused(locked: Api, path: str) -> bool:
    with opened(locked, path) as socket:
        message = json.loads(socket.recv(timeout=10))
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=10)
    return bool(message == {"status": "error", "error": "Unauthorized"})


def test_without_either_it_says_unauthorized(locked: Api) -> None:
    assert refused(locked, PATH)
    assert refused(locked, f"{PATH}?fal_jwt_token=nonsense")
    assert refused(locked, f"{PATH}?fal_jwt_token={token(locked, 'flux-pro')}")
    expired = Tokens.of(locked.node.settings.data_dir).issue("realtime", -1, apps=["flux"])
    assert refused(locked, f"{PATH}?fal_jwt_token={expired}")


def test_a_token_opens_streams_of_its_app_only(locked: Api) -> None:
    bad_input = {"prompt": "x", "num_images": 9}
    good = token(locked, "flux")
    assert locked.http.post(f"/run/fal-ai/flux/dev/stream?fal_jwt_token={good}", json=bad_input).status_code == 422
    assert locked.http.post(f"/run/fal-ai/flux-pro/stream?fal_jwt_token={good}", json=bad_input).status_code == 401
    assert locked.http.get(f"/queue/fal-ai/flux/requests/x/status/stream?fal_jwt_token={good}").status_code == 404
    assert locked.http.post(f"/rest/tokens/?fal_jwt_token={good}", json={}).status_code == 401
