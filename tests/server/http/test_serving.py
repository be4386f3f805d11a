"""The process that serves: what it sets for the whole interpreter."""

from __future__ import annotations

import subprocess
import sys

SERVE = """
import gc, os, signal, sys
from server.http import serving

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return

async def started():
    print(gc.get_freeze_count(), sys.getswitchinterval(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

serving.run(app, serving.listen("127.0.0.1", 0, 0), None, started)
"""


IDLE = """
import asyncio, os, signal
from server.http import serving

listeners = serving.listen("127.0.0.1", 0, 0)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})

async def started():
    reader, writer = await asyncio.open_connection("127.0.0.1", listeners.port)
    writer.write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    print(b" 204 " in await reader.readuntil(b"\\r\\n\\r\\n"), await asyncio.wait_for(reader.read(), 20))
    writer.close()
    os.kill(os.getpid(), signal.SIGTERM)

serving.run(app, listeners, None, started, keep_alive_s=1)
"""


def test_an_idle_connection_is_closed_after_the_time_that_was_set() -> None:
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "b''"]


def test_once_it_listens_neither_a_collection_nor_a_waiting_thread_holds_answers_up() -> None:
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, timeout=60, check=True)
    frozen, switch_s = done.stdout.split()
    assert int(frozen) > 10_000
    assert float(switch_s) < 0.005
