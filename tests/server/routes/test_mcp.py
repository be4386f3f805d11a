"""`/mcp` with the official client over real sockets: draw, fail in words, be found again after a restart."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from server.jobs.store.job import JobStatus
from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve

ROOT = Path(__file__).parents[3]


def call(api: Api, tool: str, /, **arguments: Any) -> CallToolResult:
    async def main() -> CallToolResult:
        async with Client(f"{api.url}/mcp") as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(main())


def draws(api: Api, steps: int = 3) -> None:
    """The test plays the worker for one request."""
    eventually(lambda: api.node.store.counts().get(JobStatus.QUEUED), 20)
    job = api.node.claim()
    for step in range(steps):
        api.node.step(job, step + 1, steps)
    eventually(lambda: api.node.live.logs(job.id))
    api.node.finish(job)


def text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


def test_what_is_posted_is_bounded_before_it_is_read(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    listed = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"x":[%s]}}'
    answers = [
        api.http.post("/mcp", content=listed % inside, headers=headers)
        for inside in (b"[" + 150_000 * b"[]," + b"0]", b'"' + (5 << 20) * b"x" + b'"', b"0")
    ]
    assert [answer.status_code for answer in answers] == [413, 413, 200]
    with socket.create_connection(("127.0.0.1", httpx.URL(api.url).port or 0)) as half:
        half.sendall(b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n")
        half.sendall(b"Accept: application/json, text/event-stream\r\n\r\n{")
    assert api.http.post("/mcp", content=listed % b"0", headers=headers).status_code == 200
    assert "Traceback" not in caplog.text


def test_an_agent_draws_and_sees_steps_and_picture(api: Api) -> None:
    seen: list[tuple[float, str | None]] = []

    async def main() -> CallToolResult:
        async def note(progress: float, total: float | None, message: str | None) -> None:
            seen.append((progress, message))

        async with Client(f"{api.url}/mcp") as client:
            asked = {"prompt": "a fox", "arguments": {"num_inference_steps": 3}}
            drawn = client.call_tool("generate_image", asked, progress_callback=note)
            result, _ = await asyncio.gather(drawn, asyncio.to_thread(draws, api))
            return result

    result = asyncio.run(main())
    picture = result.content[0]
    assert picture.type == "image"
    assert (picture.mime_type, base64.b64decode(picture.data)) == ("image/png", b"\x89PNG picture")
    address = next(line for line in text(result).splitlines() if line.startswith("urls:"))
    assert api.url in address
    assert seen[0][1] is not None
    assert seen[0][1].startswith("request ")


def test_endpoints_and_their_fields_are_found(api: Api) -> None:
    found = call(api, "find_endpoints", query="schnell").structured_content
    assert found is not None
    assert "fal-ai/flux/schnell" in {row["endpoint"] for row in found["result"]}
    schema = call(api, "endpoint_schema", endpoint="fal-ai/flux/schnell").structured_content
    assert schema is not None
    assert schema["properties"]["num_inference_steps"]["maximum"] == 12
    assert "$ref" not in str(schema)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("generate_image", {"prompt": "x", "endpoint": "fal-ai/none"}, "Application 'fal-ai/none' not found"),
        ("generate_image", {"prompt": "x", "arguments": {"num_images": 9}}, "num_images: "),
        ("generate_image", {"prompt": "x", "endpoint": "../../health"}, "find_endpoints"),
        ("status", {"endpoint": "fal-ai/flux/dev", "request_id": "nobody"}, "Request not found"),
        ("status", {"endpoint": "fal-ai/flux/dev", "request_id": "../../metrics"}, "submit or generate_image"),
        ("endpoint_schema", {"endpoint": "fal-ai/none"}, "not found"),
        ("upload", {"data_base64": "%%%"}, "not base64"),
        ("upload", {"data_base64": "A" * (3_600_000)}, "address"),
    ],
)
def test_what_is_wrong_is_said(api: Api, tool: str, arguments: dict[str, Any], said: str) -> None:
    result = call(api, tool, **arguments)
    assert result.is_error
    assert said in text(result)


def test_a_job_outlives_connection_and_server_and_is_found_again(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"))) as before:
        request = call(before, "submit", endpoint="fal-ai/flux/dev", arguments={"prompt": "x"}).structured_content
    before.node.store.close()
    assert request is not None
    with serve(ApiNode(tmp_path, SqliteStore(tmp_path / "jobs.db"))) as after:
        assert '"IN_QUEUE"' in text(call(after, "status", **request))
        draws(after)
        assert call(after, "result", **request).content[0].type == "image"
    after.node.store.close()


def test_cancel_and_upload(api: Api) -> None:
    request = call(api, "submit", endpoint="fal-ai/flux/dev", arguments={"prompt": "x"}).structured_content
    assert request is not None
    assert "CANCELLATION_REQUESTED" in text(call(api, "cancel", **request))
    stored = call(api, "upload", data_base64=base64.b64encode(b"pixels").decode()).structured_content
    assert stored is not None
    assert api.http.get(stored["url"]).content == b"pixels"


def test_a_key_is_asked_for_and_passed_on(tmp_path: Path) -> None:
    async def names(key: str) -> list[str]:
        headers = {"authorization": f"Bearer {key}"}
        async with (
            httpx.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(f"{locked.url}/mcp", http_client=http)) as client,  # type: ignore[arg-type]
        ):
            await client.call_tool("submit", {"endpoint": "fal-ai/flux/dev", "arguments": {"prompt": "x"}})
            return [tool.name for tool in (await client.list_tools()).tools]

    with serve(ApiNode(tmp_path, api_keys=("secret",))) as locked:
        assert locked.http.post("/mcp", json={}).status_code == 401
        assert "generate_image" in asyncio.run(names("secret"))
        assert locked.node.store.counts()[JobStatus.QUEUED] == 1


def test_over_stdio_for_agents_that_start_their_servers(api: Api) -> None:
    command = [str(ROOT / ".venv/bin/fluxserve"), "mcp", "--url", api.url]
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=dict(os.environ))

    async def main() -> CallToolResult:
        async with Client(stdio_client(parameters)) as client:
            asked = client.call_tool("generate_image", {"prompt": "a fox"})
            result, _ = await asyncio.gather(asked, asyncio.to_thread(draws, api))
            return result

    assert asyncio.run(main()).content[0].type == "image"


def test_stdio_without_a_server_says_so(tmp_path: Path) -> None:
    command = [str(ROOT / ".venv/bin/fluxserve"), "mcp", "--data-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, "no server runs here" in done.stderr) == (3, True)
