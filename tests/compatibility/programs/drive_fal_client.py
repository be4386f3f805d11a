"""What a user of `fal_client` does, in any of its versions.

Nothing in here knows an address: the environment points the client, as `fluxserve env` prints it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import fal_client
import httpx
from telling import ENDPOINT, FILE, INPUT, perform


def run() -> Any:
    return fal_client.run(ENDPOINT, INPUT)


def run_async() -> Any:
    return asyncio.run(fal_client.run_async(ENDPOINT, INPUT))


def subscribe() -> Any:
    seen: list[str] = []
    result = fal_client.subscribe(
        ENDPOINT, INPUT, with_logs=True, on_queue_update=lambda update: seen.append(type(update).__name__)
    )
    assert seen[-1] == "Completed", seen
    return result


def queue() -> Any:
    handle = fal_client.submit(ENDPOINT, INPUT)
    updates = list(handle.iter_events(with_logs=True))
    assert type(updates[-1]).__name__ == "Completed", updates
    return handle.get()


def stream() -> Any:
    return list(fal_client.stream(ENDPOINT, INPUT))[-1]


def upload() -> Any:
    url = fal_client.SyncClient().upload(FILE, "text/plain")
    return {"uploaded": httpx.get(url).raise_for_status().text}


def realtime(**options: Any) -> Any:
    with fal_client.realtime(ENDPOINT, **options) as connection:
        connection.send(INPUT)
        return connection.recv()


perform(
    {
        "run": run,
        "run_async": run_async,
        "subscribe": subscribe,
        "submit, status, result": queue,
        "stream": stream,
        "upload": upload,
        "realtime": realtime,
        "realtime without token": lambda: realtime(use_jwt=False),
    }
)
