"""An OpenAI facade over the same queue: enough for the official `openai` client and for Open WebUI."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from server import endpoints, wire
from server.areas import Arrival
from server.body import read_object
from server.ephemeral import draw
from server.errors import WireError, to_wire
from server.responses import json_response
from server.routes.connection import while_connected
from server.schemas.openai import ImageRequest
from server.store.base import StoreError
from server.submission import Wishes, new_job
from server.validation import input_error

if TYPE_CHECKING:
    from server.node import Node

_TYPES = {401: "authentication_error", 404: "invalid_request_error", 429: "rate_limit_error"}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": "An error in OpenAI's shape"} for status in (400, 401, 404, 413, 429, 499, 500, 503)
}


def openai_router(node: Node) -> APIRouter:
    """The facade's one route; the model list is in `system`."""
    router = APIRouter()

    @router.post("/v1/images/generations", responses=_RESPONSES, openapi_extra=_openapi_extra())
    async def generate(request: Request) -> Response:
        """Draw now and answer as OpenAI does."""
        try:
            return json_response(await _generate(node, request))
        except (WireError, StoreError) as exc:
            return _error(to_wire(exc))

    return router


async def _generate(node: Node, request: Request) -> dict[str, Any]:
    arrival: Arrival = request.scope["arrival"]
    try:
        wish = ImageRequest.model_validate(await read_object(request))
    except ValidationError as exc:
        raise input_error(exc) from exc
    endpoint, rest = endpoints.find(wish.model)
    if rest:
        raise endpoints.path_not_found(rest)
    spec = node.model_for(endpoint.variants)
    new = new_job(endpoint, str(uuid.uuid4()), wish.as_fal(), Wishes(), spec, is_ephemeral=True)
    status, body, headers = wire.result(await while_connected(request.receive, draw(node, new)), arrival.origin)
    if status != 200:
        raise WireError(status, body, headers)
    return {"created": int(time.time()), "data": [_entry(image) for image in body["images"]]}


def _entry(image: dict[str, Any]) -> dict[str, str]:
    """`b64_json` for a data URI, `url` for a file."""
    url = str(image["url"])
    return {"b64_json": url.partition(",")[2]} if url.startswith("data:") else {"url": url}


def _error(exc: WireError) -> Response:
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
