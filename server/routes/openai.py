"""An OpenAI facade over the same queue: enough for the official `openai` client and for Open WebUI."""

from __future__ import annotations

import time
import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from server.api import endpoints, wire
from server.api.body import read_object
from server.api.errors import to_wire
from server.api.schemas.openai import ImageRequest
from server.api.served import Served
from server.api.submission import RequestOptions, new_job
from server.api.validation import input_error
from server.gateway.areas import Target
from server.gateway.keys import Caller
from server.http.errors import WireError
from server.http.responses import json_response
from server.http.streams import while_connected
from server.jobs.service import JobService
from server.jobs.store.base import StoreError

_TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": "An error in OpenAI's shape"} for status in (400, 401, 404, 413, 429, 499, 500, 503)
}


def openai_router(jobs: JobService, served: Served) -> APIRouter:
    """The facade's one route; the model list is in `system`."""
    router = APIRouter()

    @router.post("/v1/images/generations", responses=RESPONSES, openapi_extra=_openapi_extra())
    async def generate(request: Request) -> Response:
        """Draw now and answer as OpenAI does."""
        try:
            return json_response(await _generate(jobs, served, request))
        except (WireError, StoreError) as exc:
            return error_answer(to_wire(exc))

    return router


async def _generate(jobs: JobService, served: Served, request: Request) -> dict[str, Any]:
    try:
        wish = ImageRequest.model_validate(await read_object(request))
    except ValidationError as exc:
        raise input_error(exc) from exc
    return await draw(jobs, served, request, wish.model, wish.as_fal())


async def draw(jobs: JobService, served: Served, request: Request, model: str, body: dict[str, Any]) -> dict[str, Any]:
    """Run an input of fal's endpoint `model` on this connection; OpenAI's answer. Raises: WireError, StoreError."""
    target: Target = request.scope["target"]
    caller: Caller = request.scope["caller"]
    endpoint, rest = endpoints.find(model)
    if rest:
        raise endpoints.path_not_found(rest)
    options = RequestOptions(caller.tenant)
    new = new_job(endpoint, str(uuid.uuid4()), body, options, served, is_ephemeral=True)
    status, answer, headers = wire.result(await while_connected(request.receive, jobs.run(new)), target.origin)
    if status != 200:
        raise WireError(status, answer, headers)
    return {"created": int(time.time()), "data": [_entry(image) for image in answer["images"]]}


def _entry(image: dict[str, Any]) -> dict[str, str]:
    """`b64_json` for a data URI, `url` for a file."""
    url = str(image["url"])
    return {"b64_json": url.partition(",")[2]} if url.startswith("data:") else {"url": url}


def error_answer(exc: WireError) -> Response:
    """OpenAI's error shape; a wrong input is its 400, not fal's 422."""
    detail = exc.body.get("detail")
    first = detail[0] if isinstance(detail, list) and detail else {}
    error = {
        "message": first.get("msg", detail),
        "type": _TYPES.get(exc.status, "invalid_request_error" if exc.status < 500 else "server_error"),
        "param": ".".join(str(part) for part in first.get("loc", [])[1:]) or None,
        "code": "model_not_found" if exc.status == 404 else first.get("type", exc.body.get("error_type")),
    }
    return json_response({"error": error}, 400 if exc.status == 422 else exc.status, exc.headers)


def _openapi_extra() -> dict[str, Any]:
    schema = ImageRequest.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}
