"""A server with keys: what a client without the right one sees, and what nobody may reach without one."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.official import Client, trace
from tests.acceptance.serving import Server

KEY = "5f0c3e55-3b4c-4b3b-9c1e-0a1b2c3d4e5f:secret"


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a key."""
    environment = {"FLUXSERVE_API_KEYS": f"{KEY},another:key"}
    server = Server(tmp_path_factory.mktemp("protected"), environment=environment, model="random:tiny").start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def test_the_right_key_is_served(client: Client, protected: Server) -> None:
    size = {"width": 64, "height": 64}
    done = client(protected, "run", "fal-ai/flux/dev", prompt="x", image_size=size, num_inference_steps=1)
    assert done.result["images"][0]["width"] == 64


def test_a_wrong_key_is_401_with_one_sentence(client: Client, protected: Server) -> None:
    setup = protected.setup(client.setup_name)
    wrong = {name: value if value != KEY else "wrong:key" for name, value in setup.items()}
    error = trace(client.start_with(wrong, "run", "fal-ai/flux/dev", {"prompt": "x"})).error
    assert error["status"] == 401
    assert isinstance(error["detail"], str)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/run/fal-ai/flux/dev"),
        ("POST", "/queue/fal-ai/flux/dev"),
        ("GET", "/queue/fal-ai/flux/requests/00000000-0000-4000-8000-000000000000"),
        ("PUT", "/queue/fal-ai/flux/requests/00000000-0000-4000-8000-000000000000/cancel"),
    ],
)
@pytest.mark.parametrize("header", [None, "Key wrong", "Basic abc", "Key"])
def test_nothing_of_value_answers_without_a_key(protected: Server, method: str, path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = httpx.request(method, protected.url + path, json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 401
    assert set(answer.json()) >= {"detail"}
    assert "x-fal-request-id" in answer.headers


def test_health_and_preflight_need_no_key(protected: Server) -> None:
    assert httpx.get(f"{protected.url}/livez").status_code == 200
    assert httpx.get(f"{protected.url}/readyz").status_code == 200
    preflight = {"origin": "https://a.test", "access-control-request-method": "POST"}
    assert httpx.options(f"{protected.url}/queue/fal-ai/flux/dev", headers=preflight).is_success


def test_the_key_is_never_printed(protected: Server) -> None:
    assert "protected: 2 API key(s)" in protected.output
    assert "YOUR_KEY" in protected.output
    assert KEY not in protected.output
