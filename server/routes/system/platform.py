"""fal's model list and the pages of fal.ai that programs read: lists, llms.txt, thumbnails."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.api import catalogue, llms, platform
from server.api.endpoints import Endpoint
from server.api.served import Served
from server.gateway.keys import KeyRing
from server.http.errors import PlainError, WireError
from server.http.responses import json_response
from server.routes.system.accounts import Cursor, Words, words

MARKDOWN = "text/markdown; charset=utf-8"
_MARKDOWN_ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"text/markdown": {}}}}
EXPAND_OPENAPI = "openapi-3.0"


def platform_router(served: Served, version: str, keys: KeyRing) -> APIRouter:
    """The routes; the most general path comes last."""
    router = APIRouter()

    @router.get("/v1/models", responses={400: {"description": "The cursor is none that was given"}})
    async def models(
        request: Request,
        q: str | None = None,
        category: str | None = None,
        status: str | None = None,
        endpoint_id: Words = None,
        expand: Words = None,
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    ) -> Any:
        """The endpoints, as fal and as OpenAI list them."""
        origin = request.scope["target"].origin
        wanted = frozenset(words(endpoint_id))
        rows = [row for row in catalogue.whole_catalogue() if not wanted or row.id in wanted]
        found = [row for row in rows if not q or q.lower() in f"{row.id} {row.summary}".lower()]
        found = [row for row in found if category in (None, row.category)]
        page, following = platform.page_of(found, limit, cursor)
        listed = catalogue.model_list(page, served)
        for row, entry in zip(page, listed["models"], strict=True):
            if not isinstance(row, Endpoint):
                continue
            entry["metadata"] |= platform.details(row, origin)
            if EXPAND_OPENAPI in words(expand):
                entry["openapi"] = catalogue.queue_openapi(row, version, not keys.is_open, origin)
        if status is not None:
            listed["models"] = [entry for entry in listed["models"] if entry["metadata"]["status"] == status]
        return json_response(listed | {"next_cursor": following, "has_more": following is not None})

    @router.get("/v1/models/{model_id:path}", responses={404: {"description": "No such endpoint"}})
    async def model(model_id: str) -> dict[str, Any]:
        """One endpoint, as OpenAI describes a model."""
        try:
            (row,) = platform.find_all([model_id])
        except WireError as exc:
            detail = {"detail": f"The model '{model_id[:200]}' does not exist", "code": "model_not_found"}
            raise WireError(404, detail) from exc
        return catalogue.openai_entry(row)

    @router.get("/llms.txt", response_class=Response, responses=_MARKDOWN_ANSWER)
    async def llms_of_all(request: Request) -> Response:
        """How this server is called, and every endpoint that it answers, for language models."""
        rows = [row for row in catalogue.all_endpoints() if served.answers(row.variants, row.beside)]
        text = llms.index(rows, request.scope["target"].origin, keys.is_open)
        return Response(text, media_type=MARKDOWN)

    @router.get("/models/{endpoint_id:path}/llms.txt", response_class=Response, responses=_MARKDOWN_ANSWER)
    async def llms_of_one(endpoint_id: str, request: Request) -> Response:
        """One endpoint, for language models."""
        (row,) = platform.find_all([endpoint_id])
        return Response(llms.page(row, request.scope["target"].origin, keys.is_open), media_type=MARKDOWN)

    @router.get("/models/{endpoint_id:path}/thumbnail.svg")
    async def thumbnail(endpoint_id: str) -> Response:
        """The name of one endpoint as a picture."""
        (row,) = platform.find_all([endpoint_id])
        return Response(platform.thumbnail(row), media_type="image/svg+xml")

    @router.get("/api/models")
    async def site_list(
        request: Request,
        keywords: Annotated[str, Query(max_length=200)] = "",
        categories: Annotated[list[str] | None, Query()] = None,
        page: Annotated[int, Query(ge=1)] = 1,
        total: Annotated[int, Query(ge=1, le=1000)] = 40,
    ) -> dict[str, Any]:
        """The endpoints that are answered here, as fal's site lists its own. Args: total: entries of a page."""
        rows = [row for row in catalogue.all_endpoints() if served.answers(row.variants, row.beside)]
        found = [
            row for row in rows if platform.has_words(row, keywords) and row.category in (categories or [row.category])
        ]
        return platform.site_list(found, page, total, request.scope["target"].origin)

    @router.get("/api/models/{repo:path}", responses={404: {"description": "Nothing here draws with it"}})
    async def hub_model(repo: str) -> dict[str, Any]:
        """What Hugging Face's clients ask the hub before they call the provider fal-ai."""
        answer = platform.hub_model(repo)
        if answer is None:
            raise PlainError(404, f"No endpoint of this server draws with the repository '{repo[:200]}'")
        return answer

    return router
