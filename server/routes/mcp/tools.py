"""The tools that agents get: find an endpoint, draw, follow a request, send a picture. They call the public API alone.

So one set serves both transports: inside the server over its own app, and `fluxserve mcp` over any server's address.
Every job is an ordinary one of the queue: it outlives the agent's connection and is found again by its id.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

import httpx
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ContentBlock, ImageContent, TextContent

from server.settings import VERSION

Api = Callable[["Context[Any, Any]"], httpx.AsyncClient]
"""A client of the API for one tool call, with the caller's own key and the address by which it came."""

DEFAULT_ENDPOINT = "fal-ai/flux/dev"
POLL_S = 0.2
MAX_SHOWN_BYTES = 1 << 20
"""A larger picture is given by its address alone: agents' contexts are not made for more."""
MAX_UPLOAD_BYTES = 2_500_000
"""What fits, as base64, into the four megabytes of one MCP message."""

INSTRUCTIONS = (
    "Draws pictures with FLUX. generate_image is enough for most; endpoints and their fields are found with "
    "find_endpoints and endpoint_schema. Long work: submit, then status and result by request_id, which stays valid "
    "when the connection is lost."
)
_STEP = re.compile(r"step (\d+)/(\d+)")


class Tools:
    """What an agent can do; each method's docstring is what the agent reads of it."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def find_endpoints(self, ctx: Context[Any, Any], query: str = "", limit: int = 20) -> list[dict[str, str]]:
        """List endpoints whose id or description contains `query`; all of them for an empty one."""
        async with self._api(ctx) as client:
            page = await _ask(client, "GET", "/v1/models", params={"q": query, "limit": max(1, min(limit, 200))})
        return [
            {"endpoint": row["endpoint_id"], "description": row["metadata"]["display_name"]} for row in page["models"]
        ]

    async def endpoint_schema(self, ctx: Context[Any, Any], endpoint: str) -> dict[str, Any]:
        """The input fields of one endpoint as JSON Schema."""
        async with self._api(ctx) as client:
            document = await _ask(
                client, "GET", "/api/openapi/queue/openapi.json", params={"endpoint_id": endpoint.strip("/")}
            )
        post = document["paths"][f"/queue/{endpoint.strip('/')}"]["post"]
        schema: dict[str, Any] = _inlined(post["requestBody"]["content"]["application/json"]["schema"], document)
        return schema

    async def generate_image(
        self,
        ctx: Context[Any, Any],
        prompt: str,
        endpoint: str = DEFAULT_ENDPOINT,
        arguments: dict[str, Any] | None = None,
    ) -> list[ContentBlock]:
        """Draw and wait: returns the pictures and their addresses.

        `arguments` holds further fields of the endpoint, such as image_size, num_images, seed, or image_url to edit.
        """
        async with self._api(ctx) as client:
            request_id = await _submit(client, endpoint, {"prompt": prompt} | (arguments or {}))
            await _until_ended(ctx, client, endpoint, request_id)
            return await _shown(client, endpoint, request_id)

    async def submit(self, ctx: Context[Any, Any], endpoint: str, arguments: dict[str, Any]) -> dict[str, str]:
        """Queue a request and return its request_id at once."""
        async with self._api(ctx) as client:
            return {"request_id": await _submit(client, endpoint, arguments), "endpoint": endpoint}

    async def status(self, ctx: Context[Any, Any], endpoint: str, request_id: str) -> dict[str, Any]:
        """How a request stands: IN_QUEUE with its position, IN_PROGRESS with its log, or COMPLETED (see result)."""
        async with self._api(ctx) as client:
            return await _ask(client, "GET", f"{_follow(endpoint, request_id)}/status", params={"logs": "1"})

    async def result(self, ctx: Context[Any, Any], endpoint: str, request_id: str) -> list[ContentBlock]:
        """The pictures of a request that has completed, and their addresses."""
        async with self._api(ctx) as client:
            return await _shown(client, endpoint, request_id)

    async def cancel(self, ctx: Context[Any, Any], endpoint: str, request_id: str) -> dict[str, Any]:
        """Cancel a request: a waiting one ends now, a running one before its next step."""
        async with self._api(ctx) as client:
            return await _ask(client, "PUT", f"{_follow(endpoint, request_id)}/cancel")

    async def upload(
        self, ctx: Context[Any, Any], data_base64: str, content_type: str = "image/png", file_name: str = "picture.png"
    ) -> dict[str, str]:
        """Store a picture (at most 2.5 MB) and return its address, for image_url and mask_url fields."""
        try:
            data = base64.b64decode(data_base64, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise ToolError("data_base64 is not base64") from exc
        if len(data) > MAX_UPLOAD_BYTES:
            raise ToolError(f"the picture has more than {MAX_UPLOAD_BYTES} bytes: give its address instead")
        async with self._api(ctx) as client:
            place = {"content_type": content_type, "file_name": file_name}
            grant = await _ask(client, "POST", "/rest/storage/upload/initiate", json=place)
            await _ask(client, "PUT", grant["upload_url"], content=data, headers={"content-type": content_type})
        return {"url": grant["file_url"]}


def make_server(api: Api) -> MCPServer[Any]:
    """An MCP server with all tools."""
    server: MCPServer[Any] = MCPServer("fluxserve", version=VERSION, instructions=INSTRUCTIONS)
    tools = Tools(api)
    for tool in (
        tools.find_endpoints,
        tools.endpoint_schema,
        tools.generate_image,
        tools.submit,
        tools.status,
        tools.result,
        tools.cancel,
        tools.upload,
    ):
        server.add_tool(tool)
    return server


async def _ask(client: httpx.AsyncClient, method: str, path: str, **arguments: Any) -> dict[str, Any]:
    """The answer's JSON object. Raises: ToolError with the server's own sentence."""
    try:
        answer = await client.request(method, path, **arguments)
    except httpx.HTTPError as exc:
        raise ToolError(f"the server cannot be reached: {exc}") from exc
    if answer.is_error:
        raise ToolError(_complaint(answer))
    body: dict[str, Any] = answer.json()
    return body


def _complaint(answer: httpx.Response) -> str:
    """fal's error shapes in words: the field and what is wrong with it, or the sentence."""
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"the server answered {answer.status_code}"
    if isinstance(detail, list):
        return "; ".join(f"{'.'.join(str(part) for part in entry['loc'][1:])}: {entry['msg']}" for entry in detail)
    return str(detail)


def _follow(endpoint: str, request_id: str) -> str:
    """The address of a request, below its app (the first two parts of the endpoint's id)."""
    app = "/".join(_checked(endpoint).split("/")[:2])
    if not re.fullmatch(r"[\w-]{1,64}", request_id):
        raise ToolError("request_id must be one that submit or generate_image returned")
    return f"/queue/{app}/requests/{request_id}"


def _checked(endpoint: str) -> str:
    """An endpoint id that can only be one, whatever it is put behind."""
    name = endpoint.strip("/")
    if not re.fullmatch(r"\w[\w-]*(/\w[\w.-]*)+", name):
        raise ToolError("endpoint must look like fal-ai/flux/dev; find_endpoints lists them")
    return name


async def _submit(client: httpx.AsyncClient, endpoint: str, arguments: dict[str, Any]) -> str:
    return str((await _ask(client, "POST", f"/queue/{_checked(endpoint)}", json=arguments))["request_id"])


async def _until_ended(ctx: Context[Any, Any], client: httpx.AsyncClient, endpoint: str, request_id: str) -> None:
    """Report progress until the request has ended; its id comes first, so that the agent can find it again."""
    await ctx.report_progress(0, None, f"request {request_id} is queued")
    seen = 0
    while True:
        state = await _ask(client, "GET", f"{_follow(endpoint, request_id)}/status", params={"logs": "1"})
        if state["status"] == "COMPLETED":
            return
        steps = [found for entry in state.get("logs") or () if (found := _STEP.match(entry["message"]))]
        if steps and int(steps[-1][1]) > seen:
            seen = int(steps[-1][1])
            await ctx.report_progress(seen, int(steps[-1][2]), steps[-1][0])
        await asyncio.sleep(POLL_S)


async def _shown(client: httpx.AsyncClient, endpoint: str, request_id: str) -> list[ContentBlock]:
    """Every picture as content, unless it is too large, then the result without pixels as text."""
    body = await _ask(client, "GET", _follow(endpoint, request_id))
    images = body.get("images") or []
    pictures = [picture for image in images if (picture := await _picture(client, image)) is not None]
    urls = [image["url"] if not image["url"].startswith("data:") else "(inside this answer)" for image in images]
    said = {"request_id": request_id, "urls": urls, "seed": body.get("seed"), "prompt": body.get("prompt")}
    flagged = [index for index, is_unsafe in enumerate(body.get("has_nsfw_concepts") or ()) if is_unsafe]
    if flagged:
        said["note"] = f"the safety checker blacked out picture {', '.join(map(str, flagged))}"
    return [*pictures, TextContent(type="text", text="\n".join(f"{name}: {value}" for name, value in said.items()))]


async def _picture(client: httpx.AsyncClient, image: dict[str, Any]) -> ImageContent | None:
    url, kind = str(image["url"]), str(image.get("content_type") or "image/jpeg")
    if url.startswith("data:"):
        data = url.partition(",")[2]
    else:
        # Below whatever prefix a proxy puts before it.
        answer = await client.get("/files/" + url.rpartition("/files/")[2])
        if answer.is_error or len(answer.content) > MAX_SHOWN_BYTES:
            return None
        data = base64.b64encode(answer.content).decode()
    return ImageContent(type="image", data=data, mime_type=kind) if len(data) <= 4 * MAX_SHOWN_BYTES // 3 + 4 else None


def _inlined(schema: Any, document: dict[str, Any]) -> Any:
    """A schema with its `#/components/schemas/` references put in place; ours never refer to themselves."""
    if isinstance(schema, dict):
        if (reference := schema.get("$ref")) is not None:
            name = str(reference).rpartition("/")[2]
            return _inlined(document["components"]["schemas"][name], document)
        return {key: _inlined(value, document) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_inlined(item, document) for item in schema]
    return schema
