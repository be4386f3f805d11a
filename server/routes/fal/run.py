"""The run area: a request answered on its own connection, whole or as a stream of events.

It is a job like any other, except that it is ephemeral: when the caller leaves, it is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from pipelines.protocol.frames import Progress
from server.api import endpoints, wire
from server.api.body import read_object
from server.api.errors import to_wire
from server.api.progress import steps
from server.api.served import Served
from server.api.submission import new_job, read_options
from server.files.outputs import preview_image
from server.gateway.areas import Target
from server.gateway.keys import Caller
from server.http.errors import WireError
from server.http.responses import ascii_json, json_response, wrong_method
from server.http.streams import event, send_events, while_connected
from server.jobs.service import JobService, ServerStoppingError
from server.jobs.store.job import NewJob, Outcome

STREAM = "stream"


class RunArea:
    """ASGI app of the run area."""

    def __init__(self, jobs: JobService, served: Served) -> None:
        self._jobs = jobs
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        endpoint, rest = endpoints.find(target.path)
        if rest not in ("", STREAM):
            raise endpoints.path_not_found(rest)
        if scope["method"] != "POST":
            raise wrong_method("POST", "OPTIONS")
        request = Request(scope, receive)
        caller: Caller = scope["caller"]
        options = read_options(Headers(scope=scope), target.query, caller.tenant, caller.key)
        body = await read_object(request)
        new = new_job(
            endpoint,
            target.request_id,
            body,
            options,
            self._served,
            base_url=target.files,
            is_ephemeral=True,
            preview_every=_preview_every(target.query) if rest == STREAM else 0,
        )
        if rest == STREAM:
            await send_events(receive, send, self._events(target, new, options.max_queued))
            return
        outcome = await while_connected(receive, self._jobs.run(new, options.max_queued))
        status, result, headers = wire.result(outcome, target.files, self._jobs.sign)
        await json_response(result, status, headers)(scope, receive, send)

    async def _events(self, target: Target, new: NewJob, max_queued: int | None) -> AsyncGenerator[bytes, None]:
        """Progress at every step, then the complete output. Before the first one a failure keeps its own status."""
        end = asyncio.ensure_future(self._jobs.run(new, max_queued, is_stream=True))
        has_begun = False
        try:
            async with aclosing(self._steps(new, end)) as shown:
                async for step in shown:
                    yield event(ascii_json(step))
                    has_begun = True
            yield event(ascii_json(await _last_event(target, end, has_begun, self._jobs.sign)))
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)

    async def _steps(self, new: NewJob, end: asyncio.Future[Outcome]) -> AsyncGenerator[dict[str, Any], None]:
        """One event a step, until the job has ended."""
        async with aclosing(steps(self._jobs.live, new.id, end)) as seen:
            async for progress in seen:
                yield await self._progress(new, progress)

    async def _progress(self, new: NewJob, progress: Progress) -> dict[str, Any]:
        """An event in the shape of the output, so that code which draws `images` of every event shows previews."""
        params = new.params or {}
        previews = [self._jobs.live.preview(new.id, index) for index in range(params.get("num_images", 1))]
        return {
            "images": [await asyncio.to_thread(preview_image, preview) for preview in previews if preview is not None],
            "seed": params.get("seed"),
            "prompt": params.get("prompt"),
            "step": progress.step,
            "num_inference_steps": progress.num_steps,
            "progress": progress.step / progress.num_steps,
            "eta": progress.eta_s,
        }


async def _last_event(target: Target, end: asyncio.Future[Outcome], has_begun: bool, sign: wire.Sign) -> dict[str, Any]:
    """The output, or the error object; an error before any event is raised, so that it gets its status."""
    try:
        status, body, headers = wire.result(await end, target.files, sign)
    except ServerStoppingError as exc:
        error = to_wire(exc)
        status, body, headers = error.status, error.body, error.headers
    if status != 200 and not has_begun:
        raise WireError(status, body, headers)
    return body


def _preview_every(query: bytes) -> int:
    """`preview_every=4` in the query asks for a small picture every four steps; anything else for none."""
    values = parse_qs(query.decode("latin-1")).get("preview_every", ["0"])[-1]
    return min(int(values), 1000) if values.isascii() and values.isdecimal() and len(values) < 5 else 0
