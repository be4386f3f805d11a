"""What a user of `fal.apps` and of the file toolkit of the `fal` package does."""

from __future__ import annotations

import json
from typing import Any

import fal.apps
import httpx
from fal.toolkit import File
from telling import ENDPOINT, FILE, INPUT, perform


def queue() -> Any:
    handle = fal.apps.submit(ENDPOINT, INPUT)
    events = [type(event).__name__ for event in handle.iter_events(logs=True)]
    assert type(handle.status(logs=True)).__name__ == "Completed", events
    return handle.fetch_result()


def cancel() -> Any:
    handle = fal.apps.submit(ENDPOINT, INPUT | {"prompt": "wait forever"})
    handle.cancel()
    for _ in handle.iter_events():
        pass
    return {"cancelled": True}


def stream() -> Any:
    """Lines of the event stream, as this client hands them out."""
    lines = [str(line) for line in fal.apps.stream(ENDPOINT, INPUT, path="/stream")]
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return json.loads(data[-1])


def realtime() -> Any:
    with fal.apps._connect(ENDPOINT) as connection:
        return connection.run(INPUT)


def websocket() -> Any:
    with fal.apps.ws(ENDPOINT) as connection:
        return json.loads(connection.run(INPUT))


def upload(repository: Any) -> Any:
    url = File.from_bytes(FILE, "text/plain", "note.txt", repository=repository, fallback_repository=[]).url
    return {"uploaded": httpx.get(url).raise_for_status().text}


perform(
    {
        "run": lambda: fal.apps.run(ENDPOINT, INPUT),
        "submit, status, result": queue,
        "cancel": cancel,
        "stream": stream,
        "realtime": realtime,
        "ws": websocket,
        "upload": lambda: upload("fal_v3"),
        "upload by initiate": lambda: upload("fal"),
    }
)
