"""The queue area: submit, status, status stream, result, cancel.

Status is the hot path (fal_client asks every 0.1 s), so this is plain ASGI: one parse of the path, one question to
the store on the event loop, one orjson dump.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import endpoints, wire
from server.areas import Arrival
from server.body import read_object
from server.errors import InputError, PlainError, WireError
from server.paths import FollowUp, belongs_to
from server.responses import json_response, wrong_method
from server.routes.connection import event, send_events
from server.store.base import CancelOutcome, Job, NewJob, Outcome, Standing, StoreError
from server.submission import new_job, read_wishes, rejected_job
from server.turns import Turns

if TYPE_CHECKING:
    from server.node import Node

POSITION_REFRESH_S = 1.0
"""A status stream looks at the queue position this often: others' progress moves it without an event of ours."""


class QueueArea:
    """ASGI app of the queue area."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._turns = Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival: Arrival = scope["arrival"]
        if arrival.follow_up is None:
            response = await self._submit(arrival, Request(scope, receive))
        elif arrival.follow_up.action == "status/stream":
            self._require(scope, "GET")
            self._standing(arrival, arrival.follow_up)
            await send_events(receive, send, self._events(arrival, _wants_logs(arrival.query)))
            return
        else:
            response = await self._follow_up(arrival, arrival.follow_up, scope)
        await response(scope, receive, send)

    async def _submit(self, arrival: Arrival, request: Request) -> Response:
        endpoint, rest = endpoints.find(arrival.path)
        if rest not in ("", "stream"):
            raise endpoints.path_not_found(rest)
        self._require(request.scope, "POST")
        wishes = read_wishes(Headers(scope=request.scope), arrival.query)
        body = await read_object(request)
        new: NewJob
        try:
            spec = self._node.model_for(endpoint.variants)
            new = new_job(endpoint, arrival.request_id, body, wishes, spec, base_url=arrival.base)
        except InputError as exc:
            new = rejected_job(endpoint, arrival.request_id, body, wishes, exc, arrival.base)
        # On a thread: it returns after the commit, which waits for the disk.
        job = await asyncio.to_thread(self._node.submit, new, wishes.max_queued)
        return json_response(wire.submit_body(arrival, endpoint.id, job.id, self._position(job)))

    def _position(self, job: Job) -> int | None:
        """For the answer to a submit: it is stored, so nothing may make this a 5xx, which clients would repeat."""
        try:
            standing = self._node.store.standing(job.id)
        except StoreError:
            return None
        return None if standing is None else standing.position

    async def _follow_up(self, arrival: Arrival, question: FollowUp, scope: Scope) -> Response:
        if question.action == "status":
            self._require(scope, "GET")
            await self._turns.take()
            standing = self._standing(arrival, question)
            body = self._status(arrival, standing, _wants_logs(arrival.query))
            return json_response(body, wire.status_code(standing))
        if question.action == "result":
            self._require(scope, "GET")
            return _result(arrival, self._standing(arrival, question).outcome)
        if question.action == "cancel":
            self._require(scope, "PUT")
            self._standing(arrival, question)
            return await self._cancel(arrival.request_id)
        tail = arrival.path.rpartition("/requests/")[2].partition("/")[2]
        raise endpoints.path_not_found(tail)

    async def _cancel(self, job_id: str) -> Response:
        outcome = await asyncio.to_thread(self._node.cancel, job_id)
        if outcome is CancelOutcome.NOT_FOUND:
            raise _not_found()
        if outcome is CancelOutcome.ALREADY_FINISHED:
            raise WireError(400, {"status": "ALREADY_COMPLETED", "detail": "Request has already ended"})
        return json_response({"status": "CANCELLATION_REQUESTED"}, 202)

    def _standing(self, arrival: Arrival, question: FollowUp) -> Standing:
        """Of the job asked about. A foreign app's job is hidden. Raises: WireError 404."""
        standing = self._node.store.standing(arrival.request_id) if arrival.request_id == question.request_id else None
        if standing is None or not belongs_to(standing.endpoint, question.app):
            raise _not_found()
        return standing

    def _status(self, arrival: Arrival, standing: Standing, wants_logs: bool) -> dict[str, Any]:
        logs = self._node.logs(arrival.request_id, standing.outcome) if wants_logs else None
        return wire.status_body(arrival, standing, logs)

    async def _events(self, arrival: Arrival, wants_logs: bool) -> AsyncGenerator[bytes, None]:
        """The status now and at every change, each log line once, until the result can be fetched."""
        hub, job_id = self._node.hub, arrival.request_id
        newest: dict[str, Any] | None = None
        last: dict[str, Any] = {}
        while True:
            seen = hub.version(job_id)  # before the store is asked, or a change in between would be missed
            current = self._node.store.standing(job_id)
            if current is None:
                return
            body = self._status(arrival, current, wants_logs)
            # JS puts the logs of all events together, so each carries only what is new.
            fresh = _after(newest, body.get("logs", []))
            newest = fresh[-1] if fresh else newest
            if "logs" in body:
                body["logs"] = []
            if body != last or fresh:
                last = dict(body)
                yield event(ascii_json(body | ({"logs": fresh} if fresh else {})))
            if current.status.is_finished:
                return
            await hub.wait(job_id, seen, POSITION_REFRESH_S)

    @staticmethod
    def _require(scope: Scope, method: str) -> None:
        if scope["method"] != method:
            raise wrong_method(method, "OPTIONS")


def ascii_json(body: object) -> bytes:
    """JSON in ASCII, non-ASCII characters escaped: JS clients decode event streams chunk by chunk."""
    data = orjson.dumps(body)
    # The standard writer escapes and is slow; most bodies have nothing to escape.
    return data if data.isascii() else json.dumps(body).encode("ascii")


def _result(arrival: Arrival, outcome: Outcome | None) -> Response:
    if outcome is None:
        # Not 408, 409 or 429: fal_client would repeat those ten times.
        raise PlainError(400, "Request is still in progress")
    status, body, headers = wire.result(outcome, arrival.origin)
    return json_response(body, status, headers)


def _not_found() -> WireError:
    return WireError(404, {"status": "NOT_FOUND", "detail": "Request not found"})


def _after(newest: dict[str, Any] | None, logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries after `newest`; all of them if it is no longer there (a live log keeps only the latest)."""
    for index in range(len(logs) - 1, -1, -1):
        if logs[index] == newest:
            return logs[index + 1 :]
    return logs


def _wants_logs(query: bytes) -> bool:
    """`logs=1` or `logs=true`, as JS and Python write it; the last one counts."""
    wanted = False
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == b"logs":
            wanted = value.lower() in (b"1", b"true")
    return wanted
