"""The operator's controls over the queue: find, cancel, move forward, hold back. For keys with the scope admin."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.api import accounts
from server.api.body import read_object
from server.api.tags import read_pair
from server.api.validation import input_error
from server.http.errors import WireError
from server.jobs.live import EXPANDED
from server.jobs.service import JobService
from server.jobs.store.accounts import PauseKind, Search
from server.jobs.store.job import CancelOutcome, Job, JobStatus
from server.routes.system.accounts import Cursor, Statuses, Text, When, Words, words

AT_ONCE = 500
"""Requests that one call cancels; the answer says whether there are more."""

UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING)
_REFUSED: dict[int | str, dict[str, Any]] = {400: {"description": "What cannot be meant, in words"}}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "No such request, or not in this state"}}


CONDITIONS = ("tag", "endpoint_id", "auth_method", "model", "request_id", "status")
_SAYS_WHICH: list[Any] = [{"required": [name], "properties": {name: {"minItems": 1}}} for name in CONDITIONS]
_IS_ABOUT_ALL: dict[str, Any] = {"required": ["all"], "properties": {"all": {"const": True}}}


class Filter(BaseModel):
    """Which requests: all that is given must hold. Tags are `NAME=VALUE`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"anyOf": [*_SAYS_WHICH, _IS_ABOUT_ALL]})

    tag: list[str] = Field([], max_length=10)
    endpoint_id: list[str] = Field([], max_length=100)
    auth_method: list[str] = Field([], max_length=100)
    model: list[str] = Field([], max_length=100)
    request_id: list[str] = Field([], max_length=AT_ONCE)
    status: list[Literal["queued", "running"]] = []
    all: bool = False

    def search(self) -> Search:
        """Raises: WireError 400 without any condition, which `all` stands for."""
        if not self.all and not any(getattr(self, name) for name in CONDITIONS):
            raise WireError(
                400, {"detail": "Say which requests, or that it is about all of them", "code": "bad_request"}
            )
        return Search(
            tenant=None,
            tags=tuple(read_pair(pair) for pair in self.tag),
            statuses=tuple(JobStatus(status) for status in self.status) or UNFINISHED,
            endpoints=tuple(self.endpoint_id),
            keys=tuple(self.auth_method),
            models=tuple(self.model),
            ids=tuple(self.request_id),
        )


_BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": Filter.model_json_schema()}}}}


async def _filter(request: Request) -> Filter:
    try:
        return Filter.model_validate(await read_object(request))
    except ValidationError as exc:
        raise input_error(exc) from exc


def controls_router(jobs: JobService) -> APIRouter:
    """The routes. Plain `def`: they wait for the store, on threads."""
    router = APIRouter(responses=_REFUSED)
    store = jobs.store

    @router.get("/v1/jobs")
    def listed(
        status: Statuses = None,
        tag: Words = None,
        endpoint_id: Words = None,
        auth_method: Words = None,
        model: Words = None,
        q: Text = "",
        start: When = None,
        end: When = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
    ) -> dict[str, Any]:
        """Everybody's requests without their payloads, the newest first."""
        search = Search(
            tenant=None,
            tags=tuple(read_pair(pair) for pair in tag or ()),
            statuses=accounts.statuses(status or ()),
            endpoints=tuple(words(endpoint_id)),
            keys=tuple(words(auth_method)),
            models=tuple(words(model)),
            text=q,
            since=accounts.moment(start, 0.0),
            until=accounts.moment(end, store.now() + 1),
            before=cursor,
        )
        found = store.find(search, limit + 1)
        page = found[:limit]
        following = str(page[-1].seq) if len(found) > limit else None
        shown = [accounts.request_entry(job) for job in page]
        return {"items": shown, "next_cursor": following, "has_more": following is not None}

    @router.get("/v1/jobs/{request_id}", responses=_NOT_FOUND)
    def shown(request_id: str) -> dict[str, Any]:
        """One request with its place, error and log, without its payloads."""
        job = store.get(request_id)
        if job is None:
            raise _not_found(f"No request {request_id[:64]} is kept here")
        return _details(job)

    @router.post("/v1/jobs/cancel", openapi_extra=_BODY)
    def cancel(wanted: Annotated[Filter, Depends(_filter)]) -> dict[str, Any]:
        """Cancel what a filter finds, the newest first; `has_more` asks for another call."""
        found = store.find(wanted.search(), AT_ONCE + 1)
        ends = [jobs.cancel(job.id) for job in found[:AT_ONCE] if not job.cancel_requested]
        counts = {outcome.value: ends.count(outcome) for outcome in (CancelOutcome.CANCELLED, CancelOutcome.REQUESTED)}
        return counts | {"has_more": len(found) > AT_ONCE}

    @router.post("/v1/jobs/{request_id}/prioritise", responses=_NOT_FOUND)
    def prioritise(request_id: str) -> dict[str, Any]:
        """Move a waiting request to the front of its key's line."""
        job = jobs.prioritise(request_id)
        if job is None:
            raise _not_found(f"No request {request_id[:64]} waits here")
        return _details(job)

    @router.post("/v1/jobs/{request_id}/requeue", responses=_NOT_FOUND)
    def requeue(request_id: str) -> dict[str, Any]:
        """Take a running request from its worker, or store a failed or cancelled one once more under a new id."""
        job = jobs.requeue(request_id)
        if job is None:
            raise _not_found(f"No request {request_id[:64]} runs here, failed or was cancelled")
        return _details(job)

    @router.get("/v1/pauses")
    def pauses() -> dict[str, Any]:
        """What is held back."""
        held = [{"kind": held.kind, "name": held.name, "since": accounts.iso(held.since)} for held in store.pauses()]
        return {"items": held}

    @router.put("/v1/pauses/{kind}/{name:path}", responses=_NOT_FOUND)
    def pause(kind: PauseKind, name: str) -> dict[str, Any]:
        """Requests of this model, or of this key, are taken and wait; what runs goes on."""
        store.pause(kind, name)
        return {"kind": kind, "name": name, "paused": True}

    @router.delete("/v1/pauses/{kind}/{name:path}", responses=_NOT_FOUND)
    def resume(kind: PauseKind, name: str) -> dict[str, Any]:
        """What waited runs again, in its order."""
        if not jobs.resume(kind, name):
            raise _not_found(f"The {kind} {name[:200]} is not paused")
        return {"kind": kind, "name": name, "paused": False}

    def _details(job: Job) -> dict[str, Any]:
        state = store.state(job.id)
        outcome = job.outcome
        return accounts.request_entry(job) | {
            "queue_position": None if state is None else state.position,
            "attempts": job.attempt,
            "error": None if outcome is None else outcome.error,
            "logs": [_of_nobodys_prompt(entry["message"]) for entry in jobs.logs(job.id, outcome)],
        }

    return router


def _of_nobodys_prompt(message: str) -> str:
    return EXPANDED if message.startswith(EXPANDED) else message


def _not_found(sentence: str) -> WireError:
    return WireError(404, {"detail": sentence, "code": "not_found"})
