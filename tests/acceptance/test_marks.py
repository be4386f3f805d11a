"""What every picture says of its making, whichever client fetched it: read by Pillow, by C2PA's reader, by exiftool."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.files.encoding import ImageFormat
from server.files.provenance import TRAINED_ALGORITHMIC_MEDIA
from tests.acceptance.serving import Server
from tests.conformance.child import Child, js_child, python_child
from tests.conformance.conftest import need_node
from tests.server.files.test_content_credentials import certificates, found
from tests.server.files.test_provenance import said

DEV = "fal-ai/flux/dev"
FOX = {"prompt": "a fox nobody may know of", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}
SECRET = "marks:a-key-that-is-in-no-file"


Certificates = tuple[Path, Path, str]
Judge = Callable[[bytes, ImageFormat], None]


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Chain and key of the server, and the authority behind them."""
    return certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, signing: Certificates) -> Iterator[Server]:
    """Signs with a certificate of its own, asks for a key, and only pretends to draw."""
    arguments = ("--c2pa-cert", str(signing[0]), "--c2pa-key", str(signing[1]))
    environment = {"FLUXSERVE_API_KEYS": SECRET}
    server = Server(tmp_path_factory.mktemp("marks"), arguments, environment, model="fake:").start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture
def child(request: pytest.FixtureRequest, server: Server) -> Iterator[Child]:
    if request.param == "js":
        need_node()
    child = js_child(server) if request.param == "js" else python_child(server)
    yield child
    child.kill()


RUN = {
    "python": "return fal_client.subscribe(endpoint, input)",
    "js": "return (await fal.subscribe(endpoint, { input, pollInterval: 50 })).data",
}


@pytest.mark.parametrize("child", RUN, indirect=True)
@pytest.mark.parametrize("image_format", ["jpeg", "png"])
@pytest.mark.parametrize("sync_mode", [False, True], ids=["file", "inline"])
def test_by_fals_clients(
    request: pytest.FixtureRequest, child: Child, judge: Judge, image_format: ImageFormat, sync_mode: bool
) -> None:
    code = RUN[request.node.callspec.params["child"]]
    asked = FOX | {"output_format": image_format, "sync_mode": sync_mode}
    result = child(code, endpoint=DEV, input=asked)
    judge(content(result["images"][0]["url"]), image_format)


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_by_openais_call(server: Server, judge: Judge, image_format: ImageFormat) -> None:
    asked = {"prompt": FOX["prompt"], "size": "64x64", "output_format": image_format}
    answer = httpx.post(f"{server.url}/v1/images/generations", json=asked, headers=bearer(), timeout=60).json()
    judge(base64.b64decode(answer["data"][0]["b64_json"]), image_format)


def test_by_an_agents_tool(server: Server, judge: Judge) -> None:
    call = {"name": "generate_image", "arguments": {"prompt": FOX["prompt"], "arguments": {"image_size": "square"}}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    headers = bearer() | {"accept": "application/json, text/event-stream"}
    text = httpx.post(f"{server.url}/mcp", json=message, headers=headers, timeout=60).text
    lines = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
    (answer,) = (line["result"] for line in lines if "result" in line)
    judge(base64.b64decode(answer["content"][0]["data"]), "jpeg")


def bearer() -> dict[str, str]:
    return {"authorization": f"Bearer {SECRET}"}


def content(url: str) -> bytes:
    """A picture's bytes, from its address or from the address itself."""
    if url.startswith("data:"):
        return base64.b64decode(url.partition(",")[2])
    return httpx.get(url, verify=False, timeout=30).content


@pytest.fixture
def judge(signing: Certificates, tmp_path: Path) -> Judge:
    """Raises unless a picture is marked and signed, whoever reads it, and holds neither prompt nor key."""

    def judge(picture: bytes, image_format: ImageFormat) -> None:
        assert TRAINED_ALGORITHMIC_MEDIA in said(picture).values()
        state, manifest = found(picture, image_format, signing[2])
        assert state == "Trusted"
        assert TRAINED_ALGORITHMIC_MEDIA in json.dumps(manifest)
        assert FOX["prompt"].encode() not in picture
        assert SECRET.encode() not in picture
        if shutil.which("exiftool") is not None:
            assert by_exiftool(picture, tmp_path)["DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA

    return judge


def by_exiftool(picture: bytes, folder: Path) -> dict[str, Any]:
    """What it finds, without a warning of its own."""
    (folder / "picture").write_bytes(picture)
    command = ["exiftool", "-j", "-n", "-XMP:all", "-Warning", folder / "picture"]
    facts: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)[0]
    assert "Warning" not in facts
    return facts
