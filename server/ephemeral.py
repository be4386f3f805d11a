"""Jobs that belong to one open connection: run to the end, or taken back when the caller leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from server.errors import RequestError
from server.store.base import Job, NewJob, Outcome

if TYPE_CHECKING:
    from server.node import Node


async def draw(node: Node, new: NewJob, max_queued: int | None = None) -> Outcome:
    """Submit a job and wait for its end. Cancelling this cancels the job.

    Raises: QueueFullError, StoreError from the submit; RequestError if the row is gone.
    """
    submitted = asyncio.ensure_future(asyncio.to_thread(node.submit, new, max_queued))
    try:
        await asyncio.shield(submitted)
        job = await node.wait_finished(new.id)
    except asyncio.CancelledError:
        await asyncio.shield(take_back(node, new.id, submitted))
        raise
    if job is None or job.outcome is None:
        raise RequestError(500, "internal_error", "The request was lost", retryable=True)
    return job.outcome


async def take_back(node: Node, job_id: str, submitted: asyncio.Future[Job]) -> None:
    """Cancel a job whose submit may still be under way: a cancel before it is stored would find nothing."""
    await asyncio.wait({submitted})
    if submitted.exception() is None:
        await asyncio.to_thread(node.cancel, job_id)
