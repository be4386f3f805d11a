"""Usage, prices and request search on fal's platform paths: what every key asks about its own requests."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BeforeValidator, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import StreamingResponse

from server.api import accounts, analytics, catalogue, platform, usage_table
from server.api.body import read_object
from server.api.prices import Prices
from server.api.tags import read_pair
from server.files.objects import Objects
from server.gateway.key_file import KeyScope
from server.gateway.keys import Caller
from server.http.errors import PlainError, WireError
from server.jobs import deletion
from server.jobs.service import JobService
from server.jobs.store.accounts import DAY_S, Search, UsageQuestion
from server.jobs.store.job import JobStatus

# A null has no spelling in a query, so the document does not offer one.
Words = Annotated[list[str] | SkipJsonSchema[None], Query()]
Tags = Annotated[list[str] | SkipJsonSchema[None], Query(max_length=10)]
When = datetime | SkipJsonSchema[None]
Place = Annotated[int, Field(ge=0, lt=10**15)]
Cursor = Annotated[Place | SkipJsonSchema[None], Query(description="The next_cursor of an earlier answer")]


def words(values: list[str] | None) -> list[str]:
    """fal takes several repeated, or with commas between."""
    return [word for text in values or () for word in text.split(",") if word]


Text = Annotated[
    str, Query(max_length=200, description="Words of the prompt, or beginnings of words; all must be in it")
]
Statuses = Annotated[list[accounts.Status] | SkipJsonSchema[None], BeforeValidator(words), Query()]
Metrics = Annotated[list[analytics.Metric] | SkipJsonSchema[None], BeforeValidator(words), Query()]
_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "A date, state or cursor that cannot be read"},
    404: {"description": "No such endpoint"},
}
_DELETION: dict[int | str, dict[str, Any]] = {
    404: {"description": "No such request of this key"},
    409: {"description": "It has not ended"},
}
ALL_KEYS = "Of all keys, for a key with the scope admin"


def accounts_router(jobs: JobService, prices: Prices, objects: Objects) -> APIRouter:
    """The routes. Plain `def`: they wait for the store, on threads."""
    router = APIRouter(responses=_ANSWERS)
    store = jobs.store

    @router.get("/v1/models/pricing")
    def pricing(endpoint_id: Words = None) -> dict[str, Any]:
        """What a megapixel costs, by the operator's own table; zero without one."""
        return platform.price_list(platform.find_all(words(endpoint_id)) or catalogue.all_endpoints(), prices)

    @router.post("/v1/models/pricing/estimate")
    async def estimate(request: Request) -> dict[str, Any]:
        """What so much would cost."""
        return platform.estimate(await read_object(request), prices)

    @router.get("/v1/models/usage", responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}})
    def usage(
        request: Request,
        endpoint_id: Words = None,
        auth_method: Words = None,
        start: When = None,
        end: When = None,
        tag: str = "",
        expand: Words = None,
        all_keys: Annotated[bool, Query(description=ALL_KEYS)] = False,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        form: Annotated[Literal["json", "csv"], Query(alias="format", description="csv: the whole table")] = "json",
    ) -> Any:
        """Requests, pictures, megapixels and GPU seconds by day, endpoint and key; apart by the values of a label with
        `tag=NAME`."""
        name, value = read_pair(tag)
        question = UsageQuestion(
            tenant=_tenant(request, all_keys),
            days=accounts.days(start, end, store.now()),
            name=name,
            value=value if "=" in tag else None,
            endpoints=tuple(words(endpoint_id)),
            keys=tuple(words(auth_method)),
            by_day=words(expand) != ["summary"],
        )
        if form == "csv":
            headers = {"content-disposition": 'attachment; filename="usage.csv"'}
            table = usage_table.lines(store, question, prices)
            return StreamingResponse(table, media_type="text/csv; charset=utf-8", headers=headers)
        offset = cursor or 0
        rows = store.usage(question, limit + 1, offset)
        page = rows[:limit]
        following = str(offset + limit) if len(rows) > limit else None
        if question.by_day:
            shown: dict[str, Any] = {"time_series": accounts.time_series(page, prices, name)}
        else:
            shown = {"summary": [accounts.usage_entry(row, prices, name) for row in page]}
        caller: Caller = request.scope["caller"]
        budgets = [accounts.budget_entry(budget, store, caller.key) for budget in jobs.allowance.budgets(caller.key)]
        shown |= {"budgets": budgets} if budgets else {}
        return shown | {"next_cursor": following, "has_more": following is not None}

    @router.get("/v1/models/analytics")
    def how_it_went(
        request: Request,
        endpoint_id: Words = None,
        start: When = None,
        end: When = None,
        timeframe: analytics.Timeframe | SkipJsonSchema[None] = None,
        expand: Metrics = None,
    ) -> dict[str, Any]:
        """Counts and percentiles of times of the caller's own requests by span and endpoint, over a day if not told."""
        since, until = accounts.moment(start, store.now() - DAY_S), accounts.moment(end, store.now() + 1)
        ends = tuple(status for status in JobStatus if status.is_finished)
        search = Search(_tenant(request), statuses=ends, endpoints=tuple(words(endpoint_id)), since=since, until=until)
        rows = store.ended(search, analytics.MAX_REQUESTS + 1)
        span = timeframe or ("hour" if until - since <= analytics.HOURLY_S else "day")
        series = analytics.time_series(rows[: analytics.MAX_REQUESTS], span, expand or analytics.COUNTS)
        is_cut = len(rows) > analytics.MAX_REQUESTS
        return {"time_series": series, "next_cursor": None, "has_more": is_cut}

    @router.get("/v1/models/requests/by-endpoint")
    def requests_by_endpoint(
        request: Request,
        endpoint_id: Words = None,
        auth_method: Words = None,
        request_id: Words = None,
        status: Statuses = None,
        tag: Tags = None,
        q: Text = "",
        start: When = None,
        end: When = None,
        expand: Words = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
    ) -> dict[str, Any]:
        """The caller's own requests, the newest first: those that carry all the labels `tag=NAME=VALUE`."""
        search = Search(
            tenant=_tenant(request),
            tags=tuple(read_pair(pair) for pair in tag or ()),
            statuses=accounts.statuses(status or ()),
            endpoints=tuple(words(endpoint_id)),
            keys=tuple(words(auth_method)),
            ids=tuple(words(request_id)),
            text=q,
            since=accounts.moment(start, 0.0),
            until=accounts.moment(end, store.now() + 1),
            before=cursor,
        )
        with_payloads = "payloads" in words(expand)
        found = store.find(search, limit + 1, with_payloads)
        page = found[:limit]
        following = str(page[-1].seq) if len(found) > limit else None
        shown = [
            accounts.request_entry(job) | (accounts.payloads(job, jobs.sign) if with_payloads else {}) for job in page
        ]
        return {"items": shown, "next_cursor": following, "has_more": following is not None}

    @router.delete("/v1/models/requests/{request_id}/payloads", responses=_DELETION)
    def delete(request: Request, request_id: str) -> dict[str, Any]:
        """Delete an ended request of one's own, or with the scope admin anybody's, with the pictures of its result."""
        caller: Caller = request.scope["caller"]
        job = store.get(request_id)
        is_theirs = job is not None and (job.tenant == caller.tenant or KeyScope.ADMIN in caller.scopes)
        try:
            deleted = deletion.delete(job, store, objects) if job is not None and is_theirs else None
        except deletion.NotEndedError as exc:
            raise PlainError(409, "The request has not ended: cancel it first") from exc
        if deleted is None:
            raise WireError(404, {"detail": f"No request {request_id[:64]} is kept here", "code": "not_found"})
        base = request.scope["target"].files
        files = [{"link": f"{base}{address}", "exception": problem} for address, problem in deleted.items()]
        return {"cdn_delete_results": files}

    return router


def _tenant(request: Request, all_keys: bool = False) -> str | None:
    """Whose requests are asked about: the caller's own, or everybody's. Raises: PlainError 403."""
    caller: Caller = request.scope["caller"]
    if all_keys:
        caller.require(KeyScope.ADMIN)
        return None
    return caller.tenant
