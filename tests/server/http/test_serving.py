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


def test_once_it_listens_neither_a_collection_nor_a_waiting_thread_holds_answers_up() -> None:
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, timeout=60, check=True)
    frozen, switch_s = done.stdout.split()
    assert int(frozen) > 10_000
    assert float(switch_s) < 0.005
