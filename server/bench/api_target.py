"""Any server that speaks fal's queue protocol, asked as a client would: submit, follow the status, fetch the result."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from server.bench.scenarios import Ask
from server.bench.target import AskError, BenchError, OnLoading, TargetFacts

TIMEOUT_S = 600.0
"""Silence of a server after which a request counts as failed; status streams of ours speak at every step."""


def queue_base(url: str) -> str:
    """Where submits go: `https://queue.fal.run` as it is, a bare address of a fluxserve with its /queue area.

    Raises: BenchError if it is no http(s) address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BenchError(f"--url {url}: give an address such as https://queue.fal.run or http://127.0.0.1:8000")
    is_whole = parts.path.strip("/") or parts.hostname.startswith("queue.")
    return url.rstrip("/") + ("" if is_whole else "/queue")


class ApiTarget:
    """One endpoint behind a base address. Args: key: sent as fal's clients do; None sends none."""

    def __init__(self, url: str, endpoint: str, key: str | None = None, is_local: bool = False) -> None:
        self._queue = queue_base(url)
        self._endpoint = endpoint
        self._is_local = is_local
        headers = {"Authorization": f"Key {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(TIMEOUT_S, connect=10), limits=limits)

    async def open(self, on_loading: OnLoading) -> TargetFacts:
        on_loading("reaching the server", 0.0)
        workers = await self._workers()
        if not workers:
            return TargetFacts(is_local=self._is_local)
        dtype = (await self._health()).get("models", [{}])[0].get("dtype")
        return TargetFacts(workers[0]["device"], workers[0]["device_name"], dtype, self._is_local)

    async def generate(self, ask: Ask) -> dict[str, float]:
        try:
            return await self._generate(ask)
        except httpx.HTTPError as exc:
            raise AskError(f"{type(exc).__name__}: {exc}") from exc

    async def memory(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for worker in await self._workers():
            for name, size in worker["memory"].items():
                total[name] = total.get(name, 0) + size
        return total

    def notes(self) -> list[str]:
        return []  # a server tells them in each request's log

    async def close(self) -> None:
        await self._http.aclose()

    async def _generate(self, ask: Ask) -> dict[str, float]:
        began = time.perf_counter()
        job = _body(await self._http.post(f"{self._queue}/{self._endpoint}", json=_input(ask)))
        submitted = time.perf_counter()
        while not await self._is_completed(job["status_url"]):
            pass  # the stream ended early, as a proxy may make it: open it again
        completed = time.perf_counter()
        result = _body(await self._http.get(job["response_url"]))
        if not result.get("images"):
            raise AskError("the result holds no picture")
        fetched = time.perf_counter()
        stages = {"submit": submitted - began, "result": fetched - completed}
        inference = (result.get("timings") or {}).get("inference")
        return stages if inference is None else stages | {"inference": float(inference)}

    async def _is_completed(self, status_url: str) -> bool:
        """Follow the status stream to its end."""
        async with self._http.stream("GET", f"{status_url}/stream") as events:
            if events.status_code != 200:
                await events.aread()
                _body(events)
            async for line in events.aiter_lines():
                if line.startswith("data:") and json.loads(line[5:]).get("status") == "COMPLETED":
                    return True
        return False

    async def _workers(self) -> list[dict[str, Any]]:
        """What a fluxserve says of its workers; any other server says nothing."""
        workers: list[dict[str, Any]] = (await self._health()).get("workers", [])
        return workers

    async def _health(self) -> dict[str, Any]:
        parts = urlsplit(self._queue)
        try:
            answer = await self._http.get(f"{parts.scheme}://{parts.netloc}/health", timeout=10)
            body = answer.json() if answer.status_code == 200 else {}
        except httpx.ConnectError as exc:
            raise BenchError(f"cannot reach {parts.scheme}://{parts.netloc}: {exc}") from exc
        except (httpx.HTTPError, ValueError):
            return {}
        return body if isinstance(body, dict) else {}


def _input(ask: Ask) -> dict[str, Any]:
    """As fal's text-to-image endpoints take it. The safety checker is off: it is not counted."""
    return {
        "prompt": ask.prompt,
        "image_size": {"width": ask.width, "height": ask.height},
        "num_inference_steps": ask.steps,
        "guidance_scale": ask.guidance,
        "seed": ask.seed,
        "enable_safety_checker": False,
    } | ({} if ask.acceleration == "none" else {"acceleration": ask.acceleration})


def _body(answer: httpx.Response) -> dict[str, Any]:
    """The JSON of a good answer. Raises: BenchError if the key is refused, else AskError."""
    if answer.status_code in (401, 403):
        raise BenchError(f"{answer.url.host} refuses the key (HTTP {answer.status_code}): give one with --api-key")
    if answer.status_code >= 400:
        raise AskError(f"HTTP {answer.status_code}: {answer.text[:200]}")
    body: dict[str, Any] = answer.json()
    return body
