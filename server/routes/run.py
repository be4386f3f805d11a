"""The run area: a request answered on its own connection, whole or as a stream of events.

It is a job like any other, except that it is ephemeral: when the caller leaves, it is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipelines.protocol import Progress
from server import endpoints, wire
from server.areas import Arrival
from server.body import read_object
from server.errors import RequestError, WireError
from server.outputs import preview_image
from server.responses import json_response, wrong_method
from server.routes.connection import event, send_events, while_connected
from server.routes.queue import ascii_json
from server.store.base import Job
from server.submission import new_job, read_wishes

if TYPE_CHECKING:
    from server.node import Node

STREAM = "stream"
REFRESH_S = 1.0


class RunArea:
    """ASGI app of the run area."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival: Arrival = scope["arrival"]
        endpoint, rest = endpoints.find(arrival.path)
        if rest not in ("", STREAM):
            raise endpoints.path_not_found(rest)
        if scope["method"] != "POST":
            raise wrong_method("POST", "OPTIONS")
        request = Request(scope, receive)
        wishes = read_wishes(Headers(scope=scope), arrival.query)
        body = await read_object(request)
        new = new_job(
            endpoint,
            arrival.request_id,
            body,
            wishes,
            self._node.model_for(endpoint.variants),
            base_url=arrival.base,
            is_ephemeral=True,
            preview_every=_preview_every(arrival.query) if rest == STREAM else 0,
        )
        await asyncio.to_thread(self._node.submit, new, wishes.max_queued)
        is_over = False
        try:
            if rest == STREAM:
                await send_events(receive, send, self._events(arrival))
            else:
                job = await while_connected(receive, self._node.wait_finished(new.id))
                await _answer(arrival, job)(scope, receive, send)
            is_over = True
        finally:
            if not is_over:  # the caller left, or the server stops
                await asyncio.shield(asyncio.to_thread(self._node.cancel, new.id))

    async def _events(self, arrival: Arrival) -> AsyncGenerator[bytes, None]:
        """Progress at every step, then the complete output. Before the first one a failure keeps its own status."""
        hub = self._node.hub
        job_id = arrival.request_id
        last_step = -1
        while True:
            seen = hub.version(job_id)  # before the row is read, or a change in between would be missed
            job = self._node.store.get(job_id)
            if job is None:
                return
            if job.outcome is not None:
                yield event(ascii_json(_last_event(arrival, job, has_begun=last_step >= 0)))
                return
            progress = hub.progress(job_id)
            if progress is not None and progress.step != last_step:
                last_step = progress.step
                yield event(ascii_json(await self._progress(job, progress)))
            await hub.wait(job_id, seen, REFRESH_S)

    async def _progress(self, job: Job, progress: Progress) -> dict[str, Any]:
        """An event in the shape of the output, so that code which draws `images` of every event shows previews."""
        params = job.params or {}
        previews = [self._node.hub.preview(job.id, index) for index in range(params.get("num_images", 1))]
        return {
            "images": [await asyncio.to_thread(preview_image, preview) for preview in previews if preview is not None],
            "seed": params.get("seed"),
            "prompt": params.get("prompt"),
            "step": progress.step,
            "num_inference_steps": progress.num_steps,
            "progress": progress.step / progress.num_steps,
            "eta": progress.eta_s,
        }


def _answer(arrival: Arrival, job: Job | None) -> Response:
    if job is None or job.outcome is None:
        raise RequestError(500, "internal_error", "The request was lost", retryable=True)
    status, body, headers = wire.result(job.outcome, arrival.origin)
    return json_response(body, status, headers)


def _last_event(arrival: Arrival, job: Job, has_begun: bool) -> dict[str, Any]:
    """The output, or the error object; an error before any event is raised, so that it gets its status."""
    assert job.outcome is not None
    status, body, headers = wire.result(job.outcome, arrival.origin)
    if status != 200 and not has_begun:
        raise WireError(status, body, headers)
    return body


def _preview_every(query: bytes) -> int:
    """`preview_every=4` in the query asks for a small picture every four steps; anything else for none."""
    values = parse_qs(query.decode("latin-1")).get("preview_every", ["0"])[-1]
    return min(int(values), 1000) if values.isascii() and values.isdecimal() and len(values) < 5 else 0
