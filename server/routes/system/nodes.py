"""The operator's view of all nodes of a store, and how a node or a worker is emptied before it is taken away."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from server.api import accounts
from server.http.errors import WireError
from server.jobs.membership import Membership
from server.jobs.store.nodes import SeenNode

_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No node and no worker of this name"}}


def nodes_router(membership: Membership) -> APIRouter:
    """The routes; the gateway asks for a key with the scope admin."""
    router = APIRouter()

    @router.get("/v1/nodes")
    async def listed() -> dict[str, Any]:
        """Every node with its workers, and what these hold since when: this one as it is now, others a second ago."""
        await membership.beat()
        return {"nodes": [_described(node) for node in membership.seen]}

    @router.put("/v1/drains/{name:path}", responses=_NOT_FOUND)
    async def drain(name: str) -> dict[str, Any]:
        """A node or a worker takes no more, ends what it has begun and hands the rest back. Answers at once."""
        return await ordered(name, is_wanted=True)

    @router.delete("/v1/drains/{name:path}", responses=_NOT_FOUND)
    async def undo(name: str) -> dict[str, Any]:
        """It takes requests again."""
        return await ordered(name, is_wanted=False)

    async def ordered(name: str, is_wanted: bool) -> dict[str, Any]:
        if not await membership.order(name, is_wanted):
            there_are = sorted(other for node in membership.seen for other in node.report.names)
            sentence = f"No node and no worker is called {name[:100]}; there are {', '.join(there_are)}"
            raise WireError(404, {"detail": sentence, "code": "not_found"})
        return {"name": name, "draining": is_wanted}

    return router


def _described(node: SeenNode) -> dict[str, Any]:
    shown = asdict(node.report)
    shown["started_at"] = accounts.iso(node.report.started_at)
    for worker in shown["workers"]:
        for held in worker["holds"]:
            for moment in ("claimed_at", "began_at"):
                held[moment] = None if held[moment] is None else accounts.iso(held[moment])
    return shown | {"seen_s": round(node.seen_s, 1), "silent": node.is_silent}
