"""What leaves this machine when a client is set up as `fluxserve env` says: nothing. And that the watch sees leaks.

The watch (watching/) sits inside the client's process, notes every name that is resolved and every address that is
called, and refuses what is not loopback before a packet leaves.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.conftest import need_node
from tests.conformance.recording import Record
from tests.conformance.scripted import DEV, TINY, Scripted
from tests.conformance.watched import Watched, watched_js, watched_python

NAMES = {"endpoint": DEV, "arguments": {"prompt": "a fox", **TINY}}

CALLS = """
    fal_client.run(endpoint, arguments)
    fal_client.subscribe(endpoint, arguments, with_logs=True)
    list(fal_client.stream(endpoint, arguments))
    with fal_client.realtime(endpoint, **token) as connection:
        connection.send(arguments)
        connection.recv()
    await fal_client.run_async(endpoint, arguments)
    await fal_client.subscribe_async(endpoint, arguments)
    [event async for event in fal_client.stream_async(endpoint, arguments)]
    async with fal_client.realtime_async(endpoint, **token) as connection:
        await connection.send(arguments)
        await connection.recv()
"""
UPLOADS = """
    fal_client.upload(b"private", "image/png")
    await fal_client.upload_async(b"private", "image/png")
"""
JS_CALLS = """
    await fal.run(endpoint, { input })
    await fal.subscribe(endpoint, { input, logs: true })
    await fal.subscribe(endpoint, { input, mode: "streaming" })
    const stream = await fal.stream(endpoint, { input })
    await stream.done()
    await fal.run(endpoint, { input: { ...input, extra: new Blob(["private"], { type: "image/png" }) } })
    return await fal.storage.upload(new Blob(["private"], { type: "image/png" }))
"""


def nothing_left(client: Watched) -> None:
    """Loopback is all that the client asked for; and it did ask, so the watch was awake."""
    assert {entry["target"] for entry in client.seen()} == {"127.0.0.1"}


def test_nothing_leaks_from_python_as_long_as_files_go_inline(server: Scripted, tmp_path: Path) -> None:
    inline = "    fal_client.encode(b'private', 'image/png')\n"
    with watched_python(tmp_path, server.server.setup("python")) as client:
        client(CALLS + inline, token={"use_jwt": False}, **NAMES)
        nothing_left(client)


def test_nothing_leaks_from_python_by_the_proxy_uploads_and_tokens_included(server: Scripted, tmp_path: Path) -> None:
    with watched_python(tmp_path, server.server.setup("python-proxy")) as client:
        client(CALLS + UPLOADS, token={}, **NAMES)
        nothing_left(client)


def test_nothing_leaks_from_node(server: Scripted, tmp_path: Path) -> None:
    need_node()
    with watched_js(tmp_path, server.server.setup("js")) as client:
        url = client(JS_CALLS, endpoint=DEV, input=NAMES["arguments"])
        assert url.startswith(server.url)
        nothing_left(client)


@pytest.mark.parametrize(
    "call",
    [
        "fal_client.upload(b'private', 'image/png')",
        # It would try for a minute otherwise.
        "await asyncio.wait_for(fal_client.upload_async(b'private', 'image/png'), 5)",
    ],
)
def test_an_upload_without_the_proxy_would_leak_and_the_watch_stops_it(
    server: Scripted, tmp_path: Path, record: Record, call: str
) -> None:
    with watched_python(tmp_path, server.server.setup("python")) as client:
        client.child.fails(call)
        assert set(client.escapes()) == {"rest.fal.ai"}
    assert record.all() == []


def test_a_proxy_that_is_down_makes_no_client_go_around_it(server: Scripted, tmp_path: Path) -> None:
    dead = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    with watched_python(tmp_path, server.server.setup("python-proxy") | dead) as client:
        client.child.fails("return fal_client.SyncClient().upload(b'private', 'image/png')")
        nothing_left(client)


def test_a_plain_proxy_url_would_leak_from_node_and_the_watch_stops_it(
    server: Scripted, tmp_path: Path, record: Record
) -> None:
    need_node()
    setup = {"credentials": "id:secret", "proxyUrl": f"{server.url}/api/fal/proxy", "retry": {"maxRetries": 0}}
    with watched_js(tmp_path, setup) as client:
        client.child.fails("await fal.run(endpoint, { input: {} })", endpoint=DEV)
        assert set(client.escapes()) == {"fal.run"}
    assert record.all() == []
