"""The queue area: submit, status, status stream, result, cancel.

Status is the hot path (fal_client asks every 0.1 s), so this is plain ASGI: one parse of the path, one question to
the store on the event loop, one orjson dump.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api import endpoints, wire
from server.api.body import parse_object, read_bytes
from server.api.errors import InputError
from server.api.paths import FollowUp, belongs_to
from server.api.served import Served
from server.api.submission import known_by, new_job, read_options, rejected_job
from server.gateway.areas import Target
from server.gateway.guard import Guard
from server.gateway.keys import Caller
from server.http.errors import PlainError, WireError
from server.http.pacing import Pacer
from server.http.responses import ascii_json, json_response, wrong_method
from server.http.streams import event, send_events
from server.jobs.service import JobService
from server.jobs.store.job import CancelOutcome, Job, JobState, NewJob, Outcome

POSITION_REFRESH_S = 1.0
"""A status stream looks at the queue position this often: others' progress moves it without an event of ours."""


class QueueArea:
    """ASGI app of the queue area."""

    def __init__(self, jobs: JobService, served: Served, guard: Guard) -> None:
        self._jobs = jobs
        self._served = served
        self._guard = guard
        self._pacer = Pacer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        caller: Caller = scope["caller"]
        self._jobs.lanes.note(caller.tenant)
        if target.follow_up is None:
            await self._submit(target, caller, Request(scope, receive), send)
            return
        if target.follow_up.action == "status/stream":
            self._require(scope, "GET")
            await self._state(target, target.follow_up, caller)
            await send_events(receive, send, self._events(target, caller, _wants_logs(target.query)))
            return
        else:
            response = await self._follow_up(target, target.follow_up, caller, scope)
        await response(scope, receive, send)

    async def _submit(self, target: Target, caller: Caller, request: Request, send: Send) -> None:
        endpoint, rest = endpoints.find(target.path)
        if rest not in ("", "stream"):
            raise endpoints.path_not_found(rest)
        self._require(request.scope, "POST")
        self._jobs.allowance.check_rate(caller.tenant)
        options = read_options(Headers(scope=request.scope), target.query, caller.tenant, caller.key)
        data = await read_bytes(request)
        body = parse_object(data)

        def new() -> NewJob:
            try:
                return new_job(endpoint, target.request_id, body, options, self._served, base_url=target.files)
            except InputError as exc:
                return rejected_job(endpoint, target.request_id, body, options, exc, target.files)

        def store(new: NewJob) -> Job:
            known = known_by(new, options.idempotency_key, target.query, data)
            return self._jobs.submit(known, options.max_queued)

        async with self._jobs.lanes.turn(caller.tenant):
            # On a thread: it returns after the commit, which waits for the disk.
            job = await asyncio.to_thread(store, new())
        response = json_response(wire.submit_body(target.base, endpoint.id, job.id, self._position(job)))
        await self._deliver(response, job, request, send)

    async def _deliver(self, response: Response, job: Job, request: Request, send: Send) -> None:
        """Answer a submit, and note whether that could be done: a caller who did not hear of it will ask again."""
        is_delivered = False
        try:
            if not await request.is_disconnected():
                await response(request.scope, request.receive, send)
                is_delivered = True
        finally:
            self._jobs.note_answer(job.id, is_delivered)

    def _position(self, job: Job) -> int | None:
        """For the answer to a submit: it is stored, so nothing may make this a 5xx, which clients would repeat."""
        known = self._jobs.store.known(job.id)
        return None if known is None else known.position

    async def _follow_up(self, target: Target, question: FollowUp, caller: Caller, scope: Scope) -> Response:
        if question.action == "status":
            self._require(scope, "GET")
            await self._pacer.wait(caller.tenant)
            state = await self._state(target, question, caller)
            body = self._status(target, state, _wants_logs(target.query))
            return json_response(body, wire.status_code(state))
        if question.action == "result":
            self._require(scope, "GET")
            return self._result(target, (await self._state(target, question, caller)).outcome)
        if question.action == "cancel":
            self._require(scope, "PUT")
            await self._state(target, question, caller)
            return await self._cancel(target.request_id)
        tail = target.path.rpartition("/requests/")[2].partition("/")[2]
        raise endpoints.path_not_found(tail)

    def _result(self, target: Target, outcome: Outcome | None) -> Response:
        if outcome is None:
            # Not 408, 409 or 429: fal_client would repeat those ten times.
            raise PlainError(400, "Request is still in progress")
        status, body, headers = wire.result(outcome, target.files, self._jobs.sign)
        return json_response(body, status, headers)

    async def _cancel(self, job_id: str) -> Response:
        outcome = await asyncio.to_thread(self._jobs.cancel, job_id)
        if outcome is CancelOutcome.NOT_FOUND:
            raise _not_found()
        if outcome is CancelOutcome.ALREADY_FINISHED:
            raise WireError(400, {"status": "ALREADY_COMPLETED", "detail": "Request has already ended"})
        return json_response({"status": "CANCELLATION_REQUESTED"}, 202)

    async def _state(self, target: Target, question: FollowUp, caller: Caller) -> JobState:
        """Of the job asked about. What is another tenant's or a foreign app's is unknown. Raises: WireError 404."""
        is_id = target.request_id == question.request_id
        state = await self._jobs.state(target.request_id, caller.tenant) if is_id else None
        if state is None or not belongs_to(state.endpoint, question.app):
            raise _not_found()
        return state

    def _status(self, target: Target, state: JobState, wants_logs: bool) -> dict[str, Any]:
        logs = self._jobs.logs(target.request_id, state.outcome) if wants_logs else None
        return wire.status_body(target.base, target.request_id, state, logs)

    async def _events(self, target: Target, caller: Caller, wants_logs: bool) -> AsyncGenerator[bytes, None]:
        """The status now and at every change, each log line once, until the result can be fetched, or the key or the
        server ends: the request goes on after its restart."""
        live, job_id = self._jobs.live, target.request_id
        newest: dict[str, Any] | None = None
        last: dict[str, Any] = {}
        while self._guard.still_admits(caller) and not self._jobs.streams_end.is_set():
            seen = live.version(job_id)  # before the store is asked, or a change in between would be missed
            current = await self._jobs.state(job_id, caller.tenant)
            if current is None:
                return
            body = self._status(target, current, wants_logs)
            # JS puts the logs of all events together, so each carries only what is new.
            fresh = _after(newest, body["logs"] or [])
            newest = fresh[-1] if fresh else newest
            if wants_logs:
                body["logs"] = []
            if body != last or fresh:
                last = dict(body)
                yield event(ascii_json(body | ({"logs": fresh} if fresh else {})))
            if current.status.is_finished:
                return
            await live.wait(job_id, seen, POSITION_REFRESH_S)

    @staticmethod
    def _require(scope: Scope, method: str) -> None:
        if scope["method"] != method:
            raise wrong_method(method, *(["HEAD"] if method == "GET" else []), "OPTIONS")


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
