"""Drives the unmodified `fal_client`, asynchronous, through one scenario: JSON in argv, JSON lines out."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import fal_client
from fal_client import FalClientHTTPError


def tell(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, "at": time.time()} | facts), flush=True)


def on_update(status: fal_client.Status) -> None:
    logs = getattr(status, "logs", None) or []
    tell("update", status=type(status).__name__, logs=[entry["message"] for entry in logs])


async def subscribe(endpoint: str, arguments: dict[str, Any]) -> None:
    result = await fal_client.subscribe_async(
        endpoint,
        arguments,
        with_logs=True,
        on_enqueue=lambda request_id: tell("enqueued", request_id=request_id),
        on_queue_update=on_update,
    )
    tell("result", result=result)


async def run(endpoint: str, arguments: dict[str, Any]) -> None:
    tell("result", result=await fal_client.run_async(endpoint, arguments))


async def queue(endpoint: str, arguments: dict[str, Any]) -> None:
    handle = await fal_client.submit_async(endpoint, arguments)
    tell("enqueued", request_id=handle.request_id)
    async for status in handle.iter_events(with_logs=True):
        on_update(status)
    on_update(await fal_client.status_async(endpoint, handle.request_id, with_logs=True))
    tell("result", result=await fal_client.result_async(endpoint, handle.request_id))


async def cancel(endpoint: str, arguments: dict[str, Any]) -> None:
    handle = await fal_client.submit_async(endpoint, arguments)
    tell("enqueued", request_id=handle.request_id)
    cancelled = False
    async for status in handle.iter_events(with_logs=True, interval=0.01):
        on_update(status)
        if not cancelled and any(entry["message"].startswith("step") for entry in getattr(status, "logs", None) or []):
            await handle.cancel()
            on_update(await handle.status(with_logs=True))
            tell("cancelled")
            cancelled = True
    tell("result", result=await handle.get())


async def main() -> None:
    scenario, endpoint, arguments = json.loads(sys.argv[1])
    scenarios = {"subscribe": subscribe, "run": run, "queue": queue, "cancel": cancel}
    try:
        await scenarios[scenario](endpoint, arguments)
    except FalClientHTTPError as exc:
        tell("error", status=exc.status_code, detail=exc.response.json().get("detail"), message=str(exc))


asyncio.run(main())
