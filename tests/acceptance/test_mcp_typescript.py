"""The official TypeScript client of MCP against a real server that is killed and started again in between."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.acceptance.serving import COMMAND, ROOT, Server, clean_environment

JS = ROOT / "tests" / "acceptance" / "js"
KEY = "agent:secret"
SMALL = {"image_size": {"width": 64, "height": 64}, "num_inference_steps": 4, "output_format": "png"}

Ask = Callable[..., dict[str, Any]]
"""A tool and its arguments in, what the client tells of it out; without a tool, the list of them."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With a key, and an engine that pretends, slowly enough to be killed at work."""
    model = "fake:step_ms=150"
    server = Server(tmp_path_factory.mktemp("mcp"), model=model, environment={"FLUXSERVE_API_KEYS": KEY}).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["http", "stdio"])
def ask(request: pytest.FixtureRequest, server: Server) -> Iterator[Ask]:
    """One agent for the whole test, over either transport."""
    if shutil.which("node") is None or not (JS / "node_modules" / "@modelcontextprotocol").is_dir():
        pytest.skip("Node or the TypeScript client is not installed: make dev")
    by_stdio = [*COMMAND, "mcp", "--url", server.url]
    place = [f"{server.url}/mcp"] if request.param == "http" else by_stdio
    environment = clean_environment() | {"FAL_KEY": KEY}
    command = ["node", str(JS / "mcp.mjs"), *place]
    agent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert agent.stdin is not None
    assert agent.stdout is not None

    def ask(tool: str | None = None, **input_: Any) -> dict[str, Any]:
        assert agent.stdin is not None
        assert agent.stdout is not None
        agent.stdin.write(json.dumps({"tool": tool, "input": input_}) + "\n")
        agent.stdin.flush()
        told: dict[str, Any] = json.loads(agent.stdout.readline())
        return told

    yield ask
    agent.stdin.close()
    agent.wait(30)
    agent.stdout.close()


def test_an_agent_finds_the_tools_draws_and_outlives_the_server(server: Server, ask: Ask) -> None:
    told = ask()
    assert told["server"]["name"] == "fluxserve"
    assert {
        "find_endpoints",
        "endpoint_schema",
        "generate_image",
        "submit",
        "status",
        "result",
        "cancel",
        "upload",
    } == {tool["name"] for tool in told["tools"]}
    drawn = ask("generate_image", prompt="a red boat", arguments=SMALL)
    assert_picture(drawn)
    assert drawn["progress"][0]["message"].startswith("request ")
    assert drawn["progress"][-1]["total"] == 4
    wrong = ask("generate_image", prompt="x", arguments={"num_images": 9})
    assert wrong["isError"]
    assert "num_images" in wrong["content"][0]["text"]

    submitted = ask("submit", endpoint="fal-ai/flux/dev", arguments={"prompt": "a boat that lasts", **SMALL})
    request_id = json.loads(submitted["content"][0]["text"])["request_id"]
    request = {"endpoint": "fal-ai/flux/dev", "request_id": request_id}
    server.kill_everything()
    lost = ask("status", **request)
    assert lost.get("isError") or "failed" in lost
    server.start().wait_ready()
    while '"COMPLETED"' not in (told := ask("status", **request))["content"][0]["text"]:
        assert not told["isError"], told
    assert_picture(ask("result", **request))


def assert_picture(told: dict[str, Any]) -> None:
    """The first thing that the agent is shown is a picture of the right size."""
    assert not told["isError"], told
    first = told["content"][0]
    assert (first["type"], first["mimeType"]) == ("image", "image/png")
    with Image.open(BytesIO(base64.b64decode(first["data"]))) as picture:
        assert picture.size == (64, 64)
