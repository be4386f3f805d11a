"""What a stranger finds: every route asked without a key, every listener, and what a whole run leaves in the log."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server.api.endpoints import ENDPOINTS
from tests.acceptance.serving import Server
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

ELSEWHERE = {"x-forwarded-for": "203.0.113.9", "x-fal-target-url": "https://queue.fal.run/fal-ai/flux/requests/x"}
OPEN = {
    "/", "/docs", "/openapi.json", "/favicon.ico", "/llms.txt", "/livez", "/readyz", "/playground", "/history", "/keys",
    "/ui/app.js", "/api/models", "/rest/.well-known/jwks.json",
}  # fmt: skip
"""docs/security.md lists these, and the files, whose addresses nobody guesses."""

BESIDE_THE_DOCUMENT = (
    "/mcp", "/api/fal/proxy", "/fal/proxy/x", "/rest/tokens/", "/rest/tokens/realtime", "/rest/storage/auth/token",
    "/rest/storage/upload/initiate", "/rest/storage/upload/initiate-multipart", "/files/upload",
    "/files/upload/multipart",
    "/run/fal-ai/flux/dev/realtime", "/ws/fal-ai/flux/dev", "/tokens/", "/storage/upload/initiate", "/fal-ai/flux/dev",
    "/queue/fal-ai/flux/requests/x/status/stream", "/debug", "/admin", "/config", "/shutdown", "/v1/files",
)  # fmt: skip


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Api]:
    with serve(ApiNode(tmp_path, api_keys=("id:secret",))) as served:
        yield served


def documented(api: Api) -> list[str]:
    """Every path of the document, its places filled in."""
    paths: dict[str, Any] = api.http.get("/openapi.json").json()["paths"]
    assert len(paths) > len(ENDPOINTS)
    return [re.sub(r"{[^}]+}", "x", path) for path in paths]


def test_without_a_key_nothing_answers_but_what_the_document_on_security_lists(locked: Api) -> None:
    answering = set()
    for path in {*documented(locked), *BESIDE_THE_DOCUMENT, *OPEN, "/health", "/metrics"}:
        for method in ("GET", "POST", "PUT"):
            answer = locked.http.request(method, path, headers=ELSEWHERE, json={"prompt": "x"})
            if answer.status_code not in (401, 403, 404, 405):
                answering.add(path)
    assert answering == {path for path in OPEN if path != "/favicon.ico"}


def test_the_document_on_security_lists_them(locked: Api) -> None:
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    assert all(f"`{path}`" in text for path in OPEN)


SECRET_PROMPT = "a walrus named Ildefonso on a lilac bicycle"
KEY = "ildefonso-id:ildefonso-secret"


def test_a_whole_run_leaves_neither_prompts_nor_keys_in_the_log_and_listens_on_its_ports_alone(tmp_path: Path) -> None:
    with contextlib.closing(Server(tmp_path, ("--api-key", KEY)).start()) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url, headers={"authorization": f"Key {KEY}"}, timeout=60) as http:
            body = {"prompt": SECRET_PROMPT, "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}
            assert http.post("/run/fal-ai/flux/dev", json=body).status_code == 200
            http.post("/queue/fal-ai/flux/dev", json=body)
            http.post("/queue/fal-ai/flux/dev", json=body | {"num_images": SECRET_PROMPT})
            http.post("/run/fal-ai/flux/dev", json=body | {"image_size": SECRET_PROMPT})
            token = http.post("/rest/tokens/", json={"allowed_apps": ["flux"]}).json()
            http.get(f"/queue/fal-ai/flux/requests/x/status?fal_jwt_token={token}")
            http.get("/v1/models", headers={"authorization": "Key wrong-ildefonso"})
        ports = {found.laddr.port for found in _listeners(server.pid)}
    assert ports == {server.port, server.tls_port}
    log = server.output
    assert "request" in log
    for secret in ("walrus", "Ildefonso", "ildefonso", token):
        assert secret not in log


def _listeners(pid: int) -> list[Any]:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [each for process in family for each in process.net_connections(kind="inet")]
    return [each for each in found if each.status == psutil.CONN_LISTEN]
