"""One request to a server that speaks fal's API, followed to its end as its clients do."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from server.api.paths import app_root
from server.conform.areas import Areas
from server.shadow.recording import Mode

PAUSE_S = 0.1
"""Between two looks at a request that waits; as fal's Python client pauses."""
PATIENCE_S = 3600.0


@dataclass(frozen=True)
class End:
    """Args: status: HTTP's, of the answer; 0 if none was to be had. inference: seconds, as the server says."""

    status: int
    answer: Any
    inference: float | None = None


async def ask(
    http: httpx.AsyncClient, areas: Areas, mode: Mode, endpoint: str, body: Any, headers: dict[str, str]
) -> tuple[End, float]:
    """A request of its own: (its end, seconds until it was seen)."""
    began = time.perf_counter()
    try:
        if mode == "queue":
            submitted = await http.post(f"{areas.queue}/{endpoint}", json=body, headers=headers)
            request_id = _object(submitted).get("request_id")
            if not isinstance(request_id, str):
                return end_of(submitted), time.perf_counter() - began
            return await follow(http, areas, endpoint, request_id, headers, began)
        tail = "/stream" if mode == "stream" else ""
        answer = await http.post(f"{areas.run}/{endpoint}{tail}", json=body, headers=headers)
        end = end_of_stream(answer.status_code, answer.text) if mode == "stream" else end_of(answer)
        return end, time.perf_counter() - began
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return End(0, {"detail": f"{type(exc).__name__}: {exc}"}), time.perf_counter() - began


async def follow(
    http: httpx.AsyncClient, areas: Areas, endpoint: str, request_id: str, headers: dict[str, str], began: float
) -> tuple[End, float]:
    """A queued request's end. Args: began: its submit, by `time.perf_counter`. Raises: httpx.HTTPError."""
    address = f"{areas.queue}/{app_root(endpoint)}/requests/{request_id}"
    status: dict[str, Any] = {}
    while status.get("status") != "COMPLETED":
        await asyncio.sleep(PAUSE_S)
        looked = await http.get(f"{address}/status", headers=headers)
        if looked.status_code not in (200, 202):
            return end_of(looked), time.perf_counter() - began
        status = _object(looked)
        if time.perf_counter() - began > PATIENCE_S:
            return End(0, {"detail": f"it had not ended after {PATIENCE_S:.0f} s"}), PATIENCE_S
    took = time.perf_counter() - began
    end = end_of(await http.get(address, headers=headers))
    told = _seconds(status, "metrics", "inference_time")
    return End(end.status, end.answer, told if end.inference is None else end.inference), took


def end_of(answer: httpx.Response) -> End:
    """What an answer says of a request's end."""
    body = _object(answer) or answer.text[:1000]
    return End(answer.status_code, body, _inference(body))


def end_of_stream(status: int, text: str) -> End:
    """The last event of a stream is the result, or an error, which came too late for a status of its own."""
    data = [line[5:] for line in text.replace("\r\n", "\n").split("\n") if line.startswith("data:")]
    try:
        body = json.loads(data[-1] if data else text)
    except (ValueError, RecursionError):
        return End(status, text[:1000])
    failed = status == 200 and isinstance(body, dict) and "detail" in body
    return End(500 if failed else status, body, _inference(body))


def _inference(body: Any) -> float | None:
    return _seconds(body, "timings", "inference")


def _seconds(body: Any, group: str, name: str) -> float | None:
    """A number of an answer, where there is one: another server may say anything."""
    told = body.get(group) if isinstance(body, dict) else None
    told = told.get(name) if isinstance(told, dict) else None
    return float(told) if isinstance(told, int | float) else None


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
