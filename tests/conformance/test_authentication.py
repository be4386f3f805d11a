"""Cases 16 to 21: keys and tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.conformance.child import Child, js_child, python_child
from tests.conformance.conftest import KEY, need_node
from tests.conformance.scripted import DEV, TINY, Scripted

FOX = {"prompt": "a fox", **TINY}


@pytest.fixture(scope="module")
def protected_python(shared_protected: Scripted) -> Iterator[Child]:
    """`fal_client` with the right key."""
    child = python_child(shared_protected.server)
    yield child
    child.kill()


@pytest.fixture(scope="module")
def protected_js(shared_protected: Scripted) -> Iterator[Child]:
    """`@fal-ai/client` with the right key."""
    need_node()
    child = js_child(shared_protected.server)
    yield child
    child.kill()


@pytest.fixture
def locked(protected: Scripted) -> Iterator[httpx.Client]:
    """A plain client of the protected server, without a key."""
    with httpx.Client(base_url=protected.url, timeout=60, verify=False) as client:
        yield client


def with_key(word: str, key: str) -> dict[str, str]:
    return {"authorization": f"{word} {key}"}


@pytest.mark.case(16)
def test_016_a_wrong_key_is_401_asked_once(protected: Scripted, protected_python: Child, protected_js: Child) -> None:
    right = protected_python("return fal_client.run(endpoint, arguments)", endpoint=DEV, arguments=FOX)
    assert right["prompt"] == "a fox"
    record = protected.record()
    failed = protected_python.fails(
        "return fal_client.SyncClient(key='wrong:key').run(endpoint, arguments)", endpoint=DEV, arguments=FOX
    )
    assert (failed.name, failed.status) == ("FalClientHTTPError", 401)
    assert isinstance(failed.facts["message"], str)
    assert failed.facts["text"] == failed.facts["message"]
    failed = protected_js.fails(
        """
        const config = { credentials: "wrong:key", proxyUrl: { url: `${serverUrl}/api/fal/proxy`, when: "always" } }
        await client.createFalClient(config).run(endpoint, { input })
        """,
        endpoint=DEV,
        input=FOX,
    )
    assert (failed.name, failed.status) == ("ApiError", 401)
    assert isinstance(failed.facts["body"]["detail"], str)
    assert [seen.status for seen in record.all()] == [401, 401]


@pytest.mark.case(17)
def test_017_without_a_key_only_the_open_server_serves(locked: httpx.Client, http: httpx.Client) -> None:
    for path in (f"/run/{DEV}", f"/queue/{DEV}", "/rest/tokens/", "/rest/storage/upload/initiate"):
        answer = locked.post(path, json=FOX | {"allowed_apps": ["flux"]})
        assert answer.status_code == 401, path
        assert isinstance(answer.json()["detail"], str)
        assert http.post(path, json=FOX | {"allowed_apps": ["flux"]}).status_code == 200, path


@pytest.mark.case(18)
@pytest.mark.parametrize("word", ["Key", "key", "KEY", "Bearer"])
def test_018_the_scheme_is_read_without_regard_to_case(locked: httpx.Client, word: str) -> None:
    assert locked.post(f"/run/{DEV}", json=FOX, headers=with_key(word, KEY)).status_code == 200
    # A login token of fal's means nothing here: it is refused like any wrong key.
    refused = locked.post(f"/run/{DEV}", json=FOX, headers=with_key(word, "eyJhbGciOiJSUzI1NiJ9.e30.x"))
    assert refused.status_code == 401
    assert isinstance(refused.json()["detail"], str)


@pytest.mark.case(20)
def test_020_an_upload_address_is_its_own_permission(protected: Scripted, protected_js: Child) -> None:
    record = protected.record()
    url = protected_js('return await fal.storage.upload(new Blob(["text"], { type: "text/plain" }))')
    assert httpx.get(url).text == "text"
    (put,) = [seen for seen in record.all() if seen.method == "PUT"]
    assert put.status == 200
    assert "authorization" not in put.headers
    for changed in (
        f"{protected.url}{put.path}x",
        f"{protected.url}{put.path[:-1]}",
        f"{protected.url}/files/upload/x",
    ):
        assert httpx.put(changed, content=b"text").status_code in (403, 404), changed


@pytest.fixture
def token(locked: httpx.Client) -> Callable[[float], str]:
    """Realtime tokens that live for some seconds."""

    def issue(seconds: float) -> str:
        body: dict[str, Any] = {"allowed_apps": ["flux"], "token_expiration": seconds}
        return str(locked.post("/rest/tokens/", json=body, headers=with_key("Key", KEY)).json())

    return issue


@pytest.mark.case(21)
def test_021_a_token_in_the_query_stands_for_the_key(
    protected: Scripted, protected_js: Child, locked: httpx.Client, token: Callable[[float], str]
) -> None:
    record = protected.record()
    # The client opens fal.run itself in this mode; its own option stands for DNS that names our server.
    last = protected_js(
        """
        const ours = (url, init) => fetch(url.replace("https://fal.run/", `${serverUrl}/run/`), init)
        const options = { input, connectionMode: "client", tokenProvider: async () => token }
        return await (await client.createFalClient({ fetch: ours }).stream(endpoint, options)).done()
        """,
        endpoint=DEV,
        input=FOX,
        token=token(60),
    )
    assert last["prompt"] == "a fox"
    (stream,) = record.of("POST", "/stream")
    assert "fal_jwt_token=" in stream.query
    assert "authorization" not in stream.headers
    realtime = f"ws://127.0.0.1:{protected.server.port}/run/{DEV}/realtime?fal_jwt_token="
    with connect(realtime + token(60)) as socket:
        socket.send('{"prompt": "a fox", "image_size": {"width": 64, "height": 64}}')
        assert '"a fox"' in str(socket.recv(timeout=60))
    expired = token(0.5)
    time.sleep(1.5)  # the token's own lifetime is what is tested
    refused = locked.post(f"/run/{DEV}/stream?fal_jwt_token={expired}", json=FOX)
    assert refused.status_code == 401
    assert is_refused(realtime + expired)


def is_refused(address: str) -> bool:
    """Whether a realtime connection is refused: at the handshake, or by the message that clients know."""
    try:
        with connect(address) as socket:
            return "Unauthorized" in str(socket.recv(timeout=60))
    except InvalidStatus as refused:
        return refused.response.status_code in (401, 403)
