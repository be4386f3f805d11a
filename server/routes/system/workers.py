"""The operator's hand on the workers: their devices are freed for other programs, and taken again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from server.http.errors import PlainError
from server.workers.process import Worker, Workers

_NO_SUCH: dict[int | str, dict[str, Any]] = {
    403: {"description": "The key is not the operator's, or a page of another origin asks"},
    404: {"description": "No worker on this device"},
}


def workers_router(workers: Workers) -> APIRouter:
    """The routes; the gateway asks for a key with the scope admin."""
    router = APIRouter()

    @router.get("/v1/workers")
    async def listed() -> dict[str, Any]:
        """Every worker, as /health describes it."""
        return _described(list(workers))

    @router.post("/v1/workers/sleep", responses=_NO_SUCH)
    async def sleep(request: Request, device: str | None = None) -> dict[str, Any]:
        """Let workers end what they have, then free their devices. Requests wait until they are woken."""
        return _each(request, workers, device, Worker.sleep)

    @router.post("/v1/workers/wake", responses=_NO_SUCH)
    async def wake(request: Request, device: str | None = None) -> dict[str, Any]:
        """Let workers load their models again. Answers at once; /health shows how far they are."""
        return _each(request, workers, device, Worker.wake)

    return router


def _each(request: Request, workers: Workers, device: str | None, act: Callable[[Worker], None]) -> dict[str, Any]:
    origin = request.headers.get("origin")
    if origin not in (None, request.scope["target"].origin):  # an open server is meant for programs on this machine
        raise PlainError(403, "A page of another origin may not do this")
    chosen = workers.named(device)
    if not chosen:
        raise PlainError(404, f"No worker on device {device}: there are {', '.join(w.device for w in workers)}"[:300])
    for worker in chosen:
        act(worker)
    return _described(chosen)


def _described(workers: list[Worker]) -> dict[str, Any]:
    return {"workers": [worker.describe() for worker in workers]}
