"""An OpenAI facade over the same queue: enough for the official `openai` client and for Open WebUI."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from server.api import endpoints, wire
from server.api.body import read_object
from server.api.endpoints import Endpoint
from server.api.errors import InputError, Problem
from server.api.progress import steps
from server.api.schemas.openai import Candidates, ImageRequest
from server.api.served import Served
from server.api.submission import RequestOptions, new_job
from server.api.tags import read_tags
from server.api.v1 import openai_shape
from server.api.validation import input_error
from server.files.outputs import preview_image
from server.gateway.areas import Target
from server.gateway.keys import Caller
from server.http.errors import WireError
from server.http.responses import ascii_json, error_response, json_response
from server.http.streams import EventResponse, event, while_connected
from server.jobs.service import JobService
from server.jobs.store.job import NewJob, Outcome

_OK: dict[str, Any] = {
    "description": "The pictures, or with `stream` events on their way and each picture when it is done",
    "content": {"text/event-stream": {}},
}
_STATUSES = (400, 401, 403, 404, 413, 429, 499, 500, 503)
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _OK,
    **{status: {"description": "An error in OpenAI's shape"} for status in _STATUSES},
}
_NO_USAGE = {
    "total_tokens": 0,
    "input_tokens": 0,
    "output_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
}
"""Clients for the gpt-image models add this up; here no tokens are sold."""


_OWN_NAMES = {
    "image_url": "image",
    "image_urls": "image",
    "control_image_url": "image",
    "mask_url": "mask",
    "num_images": "n",
}
"""What callers of the facade call the fields of fal's inputs that it fills."""

_SIZES = frozenset({"image_size", "aspect_ratio"})

Kind = Literal["image_generation", "image_edit"]
"""What OpenAI calls the events of a stream after."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One call. Args: asked: as OpenAI's client wrote it. new: the job that answers it."""

    asked: ImageRequest
    new: NewJob
    kind: Kind = "image_generation"


def openai_router(jobs: JobService, served: Served) -> APIRouter:
    """The facade's one route; the model list is in `system`."""
    router = APIRouter()

    @router.post("/v1/images/generations", responses=RESPONSES, openapi_extra=_openapi_extra())
    async def generate(request: Request) -> Response:
        """Draw now and answer as OpenAI does, whole or in events."""
        try:
            asked = ImageRequest.model_validate(await read_object(request))
        except ValidationError as exc:
            raise input_error(exc) from exc
        return await draw(jobs, request, wish(served, request, asked, asked.endpoints, asked.as_fal()))

    return router


def wish(
    served: Served,
    request: Request,
    asked: ImageRequest,
    models: Candidates,
    body: dict[str, Any],
    kind: Kind = "image_generation",
) -> Wish:
    """The job for a call. Args: body: as an input of one of fal's endpoints. Raises: WireError."""
    caller: Caller = request.scope["caller"]
    tags = read_tags(request.headers.get("x-fal-tags"))
    options = RequestOptions(caller.tenant, key_id=caller.key, tags=tags)
    try:
        new = new_job(_endpoint(models, served), str(uuid.uuid4()), body, options, served, is_ephemeral=True)
    except InputError as exc:
        raise _as_asked(exc) from exc
    params = dict(new.params or {})
    if asked.stream and asked.partial_images:
        params["preview_every"] = max(1, math.ceil(params["num_inference_steps"] / (asked.partial_images + 1)))
    return Wish(asked, replace(new, params=params, output=new.output | asked.delivery), kind)


async def draw(jobs: JobService, request: Request, wish: Wish) -> Response:
    """Draw on this connection; OpenAI's answer, whole or in events. Raises: WireError, StoreError."""
    target: Target = request.scope["target"]
    if wish.asked.stream:
        return EventResponse(_events(jobs, wish, target.files))
    outcome = await while_connected(request.receive, jobs.run(wish.new))
    return json_response(_answer(wish.asked, _images(outcome, target.files, jobs.sign)))


def _endpoint(models: Candidates, served: Served) -> Endpoint:
    """The first that a checkpoint here answers, else the first. Raises: WireError 404."""
    found = [named(model) for model in models]
    return next((row for row in found if served.answers(row.variants, row.beside)), found[0])


def named(model: str) -> Endpoint:
    """The endpoint of that id. Raises: WireError 404."""
    try:
        endpoint, rest = endpoints.find(model)
        if rest:
            raise endpoints.path_not_found(rest)
    except WireError as exc:
        raise WireError(exc.status, exc.body | {"code": "model_not_found"}) from exc
    return endpoint


def _images(outcome: Outcome, origin: str, sign: wire.Sign) -> list[dict[str, Any]]:
    """The pictures of a result. Raises: WireError if it is none."""
    status, body, headers = wire.result(outcome, origin, sign)
    if status != 200:
        raise _as_asked(WireError(status, body, headers))
    images: list[dict[str, Any]] = body["images"]
    return images


def _as_asked(exc: WireError) -> WireError:
    """The same error at the fields that the caller has sent, not at those of fal's input made of them."""
    detail = exc.body.get("detail")
    if not isinstance(detail, list):
        return exc
    return WireError(exc.status, exc.body | {"detail": [_with_own_names(entry) for entry in detail]}, exc.headers)


def _with_own_names(entry: Problem) -> Problem:
    match entry.get("loc"):
        case [body, name, *_] if name in _SIZES:
            return entry | {"loc": [body, "size"]}
        case [body, name, *rest]:
            return entry | {"loc": [body, _OWN_NAMES.get(name, name), *rest]}
        case _:
            return entry


def _answer(asked: ImageRequest, images: list[dict[str, Any]]) -> dict[str, Any]:
    answer = {"created": int(time.time()), "data": [_entry(image) for image in images]}
    return answer | (_about(asked, images[0]) | {"usage": _NO_USAGE} if asked.is_inline else {})


def _about(asked: ImageRequest, image: dict[str, Any]) -> dict[str, Any]:
    """What gpt-image answers say of a picture; transparency is told to be none where it was asked for in vain."""
    size = f"{image['width']}x{image['height']}"
    return {"output_format": asked.file_format, "size": size, "quality": "high", "background": "opaque"}


def _entry(image: dict[str, Any]) -> dict[str, str]:
    """`b64_json` for a data URI, `url` for a file."""
    url = str(image["url"])
    return {"b64_json": url.partition(",")[2]} if url.startswith("data:") else {"url": url}


def error_answer(exc: WireError) -> Response:
    """The same error in OpenAI's shape."""
    return error_response(openai_shape(exc))


async def _events(jobs: JobService, wish: Wish, origin: str) -> AsyncGenerator[bytes, None]:
    """Previews as they come, then each picture. Before the first event a failure keeps its own status."""
    end = asyncio.ensure_future(jobs.run(wish.new, is_stream=True))
    sent = 0
    try:
        async with aclosing(_partial_images(jobs, wish, end)) as partial_images:
            async for shown in partial_images:
                yield _event(wish.kind, "partial_image", shown | {"partial_image_index": sent})
                sent += 1
        for image in _images(await end, origin, jobs.sign):
            about = _entry(image) | {"created_at": int(time.time())} | _about(wish.asked, image)
            yield _event(wish.kind, "completed", about | {"usage": _NO_USAGE})
            sent += 1
    except WireError as exc:
        if not sent:
            raise
        yield b"event: error\n" + event(ascii_json(openai_shape(exc).body))
    finally:
        end.cancel()
        await asyncio.gather(end, return_exceptions=True)


async def _partial_images(
    jobs: JobService, wish: Wish, end: asyncio.Future[Outcome]
) -> AsyncGenerator[dict[str, Any], None]:
    """At most as many previews of the first picture as were asked for."""
    left, last_step = wish.asked.partial_images or 0, -1
    async with aclosing(steps(jobs.live, wish.new.id, end)) as progress:
        async for _ in progress:
            preview = jobs.live.preview(wish.new.id, 0)
            if preview is None or preview.step == last_step or not left:
                continue
            left, last_step = left - 1, preview.step
            image = await asyncio.to_thread(preview_image, preview)
            about = _about(wish.asked, image) | {"output_format": "jpeg"}
            yield _entry(image) | {"created_at": int(time.time())} | about


def _event(kind: Kind, what: str, about: dict[str, Any]) -> bytes:
    name = f"{kind}.{what}"
    return f"event: {name}\n".encode() + event(ascii_json({"type": name} | about))


def _openapi_extra() -> dict[str, Any]:
    schema = ImageRequest.model_json_schema()
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}
