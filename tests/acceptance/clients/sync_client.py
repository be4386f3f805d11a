"""Drives the unmodified `fal_client`, synchronous, through one scenario: JSON in argv, JSON lines out.

Nothing in here knows an address: the environment points the client, as `fluxserve env` prints it.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import fal_client
from fal_client import FalClientHTTPError


def tell(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, "at": time.time()} | facts) + "\n")  # in one piece, from any thread
    sys.stdout.flush()


def on_update(status: fal_client.Status) -> None:
    logs = getattr(status, "logs", None) or []
    tell("update", status=type(status).__name__, logs=[entry["message"] for entry in logs])


def subscribe(endpoint: str, arguments: dict[str, Any]) -> None:
    result = fal_client.subscribe(
        endpoint,
        arguments,
        with_logs=True,
        on_enqueue=lambda request_id: tell("enqueued", request_id=request_id),
        on_queue_update=on_update,
    )
    tell("result", result=result)


def run(endpoint: str, arguments: dict[str, Any]) -> None:
    tell("result", result=fal_client.run(endpoint, arguments))


def queue(endpoint: str, arguments: dict[str, Any]) -> None:
    handle = fal_client.submit(endpoint, arguments)
    tell("enqueued", request_id=handle.request_id)
    for status in handle.iter_events(with_logs=True):
        on_update(status)
    # By id, as another process would ask.
    on_update(fal_client.status(endpoint, handle.request_id, with_logs=True))
    tell("result", result=fal_client.result(endpoint, handle.request_id))


def cancel(endpoint: str, arguments: dict[str, Any]) -> None:
    handle = fal_client.submit(endpoint, arguments)
    tell("enqueued", request_id=handle.request_id)
    cancelled = False
    for status in handle.iter_events(with_logs=True, interval=0.01):
        on_update(status)
        if not cancelled and any(entry["message"].startswith("step") for entry in getattr(status, "logs", None) or []):
            handle.cancel()
            on_update(handle.status(with_logs=True))
            tell("cancelled")
            cancelled = True
    tell("result", result=handle.get())


def pictures(_: str, arguments: dict[str, Any]) -> None:
    """Many endpoints side by side; `@upload PATH` and `@inline PATH` in an input become addresses of that file."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(each) for each in value]
        if isinstance(value, dict):
            return {name: named(each) for name, each in value.items()}
        how, _, path = value.partition(" ") if isinstance(value, str) else ("", "", "")
        return {"@upload": fal_client.upload_file, "@inline": fal_client.encode_file}.get(how, lambda _: value)(path)

    def ask(endpoint: str, fields: dict[str, Any]) -> None:
        try:
            tell("result", endpoint=endpoint, result=fal_client.subscribe(endpoint, named(fields)))
        except FalClientHTTPError as exc:
            tell("error", endpoint=endpoint, status=exc.status_code, detail=exc.response.json().get("detail"))

    with ThreadPoolExecutor(4) as threads:
        for asked in [threads.submit(ask, *call) for call in arguments["calls"]]:
            asked.result()


def main() -> None:
    scenario, endpoint, arguments = json.loads(sys.argv[1])
    scenarios = {"subscribe": subscribe, "run": run, "queue": queue, "cancel": cancel, "pictures": pictures}
    try:
        scenarios[scenario](endpoint, arguments)
    except FalClientHTTPError as exc:
        tell("error", status=exc.status_code, detail=exc.response.json().get("detail"), message=str(exc))


main()
