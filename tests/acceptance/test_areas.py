"""Host header, path prefix and proxy header reach the same handlers, over plain HTTP and TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx
import pytest

from tests.acceptance.serving import Server

TINY = {"prompt": "a red circle", "image_size": {"width": 64, "height": 64}, "num_inference_steps": 1}


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    """A client that trusts only our authority, strictly, and follows no redirect."""
    trust = ssl.create_default_context(cafile=str(server.data_dir / "tls" / "ca.pem"))
    trust.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    with httpx.Client(verify=trust, timeout=30, follow_redirects=False) as client:
        yield client


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("way", ["prefix", "host", "proxy"])
def test_every_way_enqueues_and_its_addresses_lead_back(
    server: Server, http: httpx.Client, scheme: str, way: str
) -> None:
    base = server.url if scheme == "http" else server.tls_url
    own = base.removeprefix(f"{scheme}://")
    if way == "prefix":
        answer = http.post(f"{base}/queue/fal-ai/flux/dev", json=TINY)
        expected = f"{base}/queue/fal-ai/flux/requests/"
    elif way == "host":
        answer = http.post(f"{base}/fal-ai/flux/dev", json=TINY, headers={"host": "queue.fal.run"})
        expected = f"{scheme}://queue.fal.run/fal-ai/flux/requests/"
    else:
        target = {"x-fal-target-url": "https://queue.fal.run/fal-ai/flux/dev"}
        answer = http.post(f"{base}/api/fal/proxy", json=TINY, headers=target)
        expected = f"{scheme}://{own}/queue/fal-ai/flux/requests/"
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["status"] == "IN_QUEUE"
    assert {"request_id", "response_url", "status_url", "cancel_url", "queue_position"} <= set(body)
    for name in ("response_url", "status_url", "cancel_url"):
        assert body[name].startswith(expected + body["request_id"]), body
    assert answer.headers["x-fal-request-id"] == body["request_id"]


def test_a_proxy_target_elsewhere_is_refused_without_a_connection(server: Server, http: httpx.Client) -> None:
    for target in ("https://example.com/", "http://queue.fal.run.evil.test/fal-ai/flux/dev", ""):
        answer = http.post(f"{server.url}/api/fal/proxy", json=TINY, headers={"x-fal-target-url": target})
        assert answer.status_code == 400, target
        assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("slash", ["", "/"])
def test_both_slash_forms_answer_without_redirect(server: Server, http: httpx.Client, slash: str) -> None:
    answer = http.post(f"{server.tls_url}/run/fal-ai/flux/dev{slash}", json=TINY)
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    # Plain, as the caller is local: some clients read addresses with a library that knows nothing of our authority.
    assert image["url"].startswith(f"{server.url}/files/")
    assert http.get(image["url"]).status_code == 200


def test_a_page_of_another_origin_may_call(server: Server, http: httpx.Client) -> None:
    asked = {
        "origin": "https://app.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-fal-target-url",
    }
    answer = http.options(f"{server.url}/api/fal/proxy", headers=asked)
    assert answer.is_success
    assert answer.headers["access-control-allow-origin"] in ("*", asked["origin"])
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert "x-fal-target-url" in allowed


def test_an_unknown_request_is_404(server: Server, http: httpx.Client) -> None:
    unknown = "00000000-0000-4000-8000-000000000000"
    for path in (f"requests/{unknown}", f"requests/{unknown}/status"):
        answer = http.get(f"{server.url}/queue/fal-ai/flux/{path}")
        assert answer.status_code == 404
        assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff\xfe", b"nonsense"])
def test_malformed_json_is_a_client_error_in_fals_shape(server: Server, http: httpx.Client, body: bytes) -> None:
    answer = http.post(f"{server.url}/run/fal-ai/flux-pro", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert "Traceback" not in answer.text
