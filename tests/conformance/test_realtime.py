"""Cases 76 to 85: realtime.

The JavaScript client has no setting for its WebSocket's host, so the page (here: the piece of code) brings a subclass
that leads `wss://fal.run/` to the server; Node needs a flag for WebSockets below version 22.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.conformance.child import Child, js_child
from tests.conformance.conftest import KEY, need_node
from tests.conformance.drawn import drawn
from tests.conformance.scripted import DEV, TINY, Scripted

FOX = {"prompt": "a fox", "seed": 1, "sync_mode": True, **TINY}

SOCKETS = """
    const sockets = []
    globalThis.Native ??= globalThis.WebSocket
    globalThis.WebSocket = class extends Native {
      constructor(url) {
        super(url.replace("wss://fal.run/", `${serverUrl.replace("http", "ws")}/run/`))
        sockets.push(this)
        this.addEventListener("close", (event) => { this.seenCode = event.code })
      }
    }
    const until = async (holds) => { for (let k = 0; k < 3000 && !holds(); k++) await pause(20) }
    const results = [], errors = []
    const onError = (error) => errors.push({ status: error.status, message: error.message })
    const onResult = (result) => results.push(result)
    const connect = (options) => fal.realtime.connect(endpoint, { onError, onResult, throttleInterval: 0, ...options })
"""


@pytest.fixture(scope="module")
def node(shared_server: Scripted) -> Iterator[Child]:
    """Node with WebSockets, against the open server."""
    yield from _node_of(shared_server)


@pytest.fixture(scope="module")
def impatient_node(shared_impatient: Scripted) -> Iterator[Child]:
    yield from _node_of(shared_impatient)


@pytest.fixture(scope="module")
def protected_node(shared_protected: Scripted) -> Iterator[Child]:
    yield from _node_of(shared_protected)


def _node_of(server: Scripted) -> Iterator[Child]:
    need_node()
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    made = js_child(server.server, *(["--experimental-websocket"] if version < "v22" else []))
    yield made
    made.kill()


def token_of(server: Scripted, seconds: float, app: str = "flux") -> str:
    """A realtime token, as a user's own back end fetches it."""
    body = {"allowed_apps": [app], "token_expiration": seconds}
    headers = {"authorization": f"Key {KEY}"}
    answer = httpx.post(f"{server.url}/rest/tokens/", json=body, headers=headers, timeout=60, verify=False)
    token = answer.json()
    assert isinstance(token, str), "a bare JSON string"
    return token


PYTHON_ASK = """
    kinds = []
    def decoded(data):
        kinds.append(type(data).__name__)
        return fal_client.client.msgpack_decode_message(data)
    with fal_client.SyncClient().realtime(endpoint, decode_message=decoded, **options) as connection:
        connection.send(arguments)
        return connection.recv(), kinds
"""


@pytest.mark.case(76)
def test_076_python_with_its_key_speaks_msgpack(server: Scripted, python: Child) -> None:
    result, kinds = python(PYTHON_ASK, endpoint=DEV, arguments=FOX, options={"use_jwt": False})
    assert kinds == ["bytes"], "the answer came as msgpack"
    run = python("return fal_client.run(endpoint, arguments)", endpoint=DEV, arguments=FOX)
    assert drawn(result) == drawn(run)
    code = """
        async with fal_client.AsyncClient().realtime(endpoint, use_jwt=False) as connection:
            await connection.send(arguments)
            return await connection.recv()
    """
    assert drawn(python(code, endpoint=DEV, arguments=FOX)) == drawn(result)


@pytest.mark.case(77)
def test_077_python_with_a_token(server: Scripted, proxied: Child) -> None:
    record = server.record()
    result, kinds = proxied(PYTHON_ASK, endpoint=DEV, arguments=FOX, options={})
    assert (result["seed"], kinds) == (1, ["bytes"])
    (asked,) = record.of("POST", "/tokens")
    assert asked.status == 200
    assert asked.headers["host"] == "rest.fal.ai"
    assert token_of(server, 120).count(".") == 2


@pytest.mark.case(78)
def test_078_js_gets_its_results_and_nothing_else(server: Scripted, node: Child) -> None:
    code = (
        SOCKETS
        + """
        const connection = connect({})
        connection.send(input)
        await until(() => results.length === 1)
        connection.send({ ...input, seed: 2 })
        await until(() => results.length === 2)
        connection.close()
        return { results, errors, sockets: sockets.length }
    """
    )
    told = node(code, endpoint=DEV, input=FOX)
    assert [result["seed"] for result in told["results"]] == [1, 2]
    assert all(len(result["images"]) == 1 for result in told["results"])
    assert (told["errors"], told["sockets"]) == ([], 1)


@pytest.mark.case(79)
def test_079_a_wrong_input_is_an_error_and_the_next_works(server: Scripted, node: Child, python: Child) -> None:
    code = (
        SOCKETS
        + """
        const connection = connect({})
        connection.send({ ...input, num_images: 9 })
        await until(() => errors.length === 1)
        connection.send(input)
        await until(() => results.length === 1)
        connection.close()
        return { results, errors, sockets: sockets.length }
    """
    )
    told = node(code, endpoint=DEV, input=FOX)
    (error,) = told["errors"]
    assert error["status"] == 400
    assert error["message"] == "INVALID_INPUT: num_images: Input should be less than or equal to 4"
    assert ([result["seed"] for result in told["results"]], told["sockets"]) == ([1], 1)
    code = """
        with fal_client.SyncClient().realtime(endpoint, use_jwt=False) as connection:
            connection.send({**arguments, "num_images": 9})
            try:
                connection.recv()
            except fal_client.client.RealtimeError as error:
                connection.send(arguments)
                return error.error, connection.recv()["seed"]
    """
    assert python(code, endpoint=DEV, arguments=FOX) == ["INVALID_INPUT", 1]


@pytest.mark.case(80)
def test_080_an_idle_socket_is_closed_and_opened_again(impatient: Scripted, impatient_node: Child) -> None:
    address = f"{impatient.url.replace('http', 'ws')}/run/{DEV}/realtime"
    with connect(address) as socket:
        told = json.loads(socket.recv(timeout=60))
        assert (told["type"], told["error"]) == ("x-fal-error", "TIMEOUT")
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=60)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.code == 1000
    record = impatient.record()
    code = (
        SOCKETS
        + """
        const connection = connect({})
        connection.send(input)
        await until(() => results.length === 1)
        await until(() => sockets[0].seenCode !== undefined)
        connection.send({ ...input, seed: 2 })
        await until(() => results.length === 2)
        connection.close()
        return { results, errors, codes: sockets.map((socket) => socket.seenCode ?? null) }
    """
    )
    seen = impatient_node(code, endpoint=DEV, input=FOX)
    assert [result["seed"] for result in seen["results"]] == [1, 2]
    assert (seen["errors"], len(seen["codes"]), seen["codes"][0]) == ([], 2, 1000)
    assert len(record.of("POST", "/tokens")) == 2, "a new connection takes a new token"


@pytest.mark.case(81)
def test_081_of_a_burst_the_first_and_the_last_are_answered(server: Scripted, python: Child) -> None:
    code = """
        with fal_client.SyncClient().realtime(endpoint, use_jwt=False, max_buffering=1) as connection:
            for seed in range(10):
                connection.send({**arguments, "seed": seed})
            seeds = []
            while 9 not in seeds:
                seeds.append(connection.recv()["seed"])
            return seeds
    """
    seeds = python(code, endpoint=DEV, arguments=FOX)
    assert (seeds[0], seeds[-1]) == (0, 9)
    assert seeds == sorted(seeds)


@pytest.mark.case(82)
def test_082_after_a_bad_token_js_fetches_another(protected: Scripted, protected_node: Child) -> None:
    code = (
        SOCKETS
        + """
        const given = []
        const tokenProvider = async (app) => { given.push(app); return tokens[Math.min(given.length, 2) - 1] }
        const connection = connect({ tokenProvider })
        connection.send(input)
        await until(() => sockets[0]?.seenCode !== undefined)
        connection.send(input)
        await until(() => results.length === 1)
        connection.close()
        return { results, errors, given }
    """
    )
    tokens = ["nonsense", token_of(protected, 60)]
    told = protected_node(code, endpoint=DEV, input=FOX, tokens=tokens)
    assert [result["seed"] for result in told["results"]] == [1]
    assert told["given"] == [f"{DEV}/realtime"] * 2
    assert told["errors"] == []


@pytest.mark.case(83)
def test_083_each_answer_has_the_encoding_of_its_question(server: Scripted, python: Child) -> None:
    code = """
        import json
        kinds = []
        def encoded(message):
            as_text = message.pop("as_text")
            return json.dumps(message) if as_text else fal_client.client.msgpack_encode_message(message)
        def decoded(data):  # called for binary frames alone
            kinds.append("binary")
            return fal_client.client.msgpack_decode_message(data)
        hooks = {"encode_message": encoded, "decode_message": decoded}
        with fal_client.SyncClient().realtime(endpoint, use_jwt=False, **hooks) as connection:
            seen = []
            for seed, as_text in enumerate((True, False, True, False)):
                connection.send({**arguments, "seed": seed, "as_text": as_text})
                seen.append((connection.recv()["seed"], len(kinds)))
            return seen
    """
    seen: list[Any] = python(code, endpoint=DEV, arguments=FOX)
    assert seen == [[0, 0], [1, 1], [2, 1], [3, 2]]


@pytest.mark.case(84)
def test_084_a_socket_outlives_its_token(protected: Scripted, protected_node: Child) -> None:
    token = token_of(protected, 2)
    code = (
        SOCKETS
        + """
        const connection = connect({ tokenProvider: async () => token })
        connection.send(input)
        await until(() => results.length === 1)
        const refused = async () => (await fetch(`${serverUrl}/run/${endpoint}/stream?fal_jwt_token=${token}`,
          { method: "POST", body: "{}" })).status === 401
        for (let k = 0; k < 600 && !(await refused()); k++) await pause(100)
        connection.send({ ...input, seed: 2 })
        await until(() => results.length === 2)
        connection.close()
        return { results, errors, sockets: sockets.length, isRefused: await refused() }
    """
    )
    told = protected_node(code, endpoint=DEV, input=FOX, token=token)
    assert told["isRefused"], "the token has expired"
    assert [result["seed"] for result in told["results"]] == [1, 2]
    assert (told["errors"], told["sockets"]) == ([], 1)


@pytest.mark.case(85)
def test_085_a_close_by_js_is_a_normal_one(server: Scripted, node: Child) -> None:
    code = (
        SOCKETS
        + """
        const connection = connect({})
        connection.send(input)
        await until(() => results.length === 1)
        connection.close()
        await until(() => sockets[0].seenCode !== undefined)
        return { errors, code: sockets[0].seenCode }
    """
    )
    assert node(code, endpoint=DEV, input=FOX) == {"errors": [], "code": 1000}
