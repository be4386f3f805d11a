"""The whole application: areas, keys, cross-origin rules, our own pages, and what a bug looks like from outside."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from server.api import catalogue, endpoints
from server.api.endpoints import ENDPOINTS
from server.api.schemas import answers
from server.api.unserved import UNSERVED
from server.settings import CHECKOUT, VERSION
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

DEV = {"prompt": "a fox"}
PROXY = "/api/fal/proxy"


@pytest.fixture
def locked(tmp_path: Path) -> Any:
    with serve(ApiNode(tmp_path, api_keys=("id:secret",))) as served:
        yield served


def test_importing_the_app_leaves_torch_out() -> None:
    code = "import sys, server.app; sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Areas


def test_the_three_ways_into_the_queue_are_one(api: Api) -> None:
    by_prefix = api.http.post("/queue/fal-ai/flux/dev", json=DEV)
    by_host = api.http.post("/fal-ai/flux/dev", json=DEV, headers={"host": "queue.fal.run"})
    target = {"x-fal-target-url": "https://queue.fal.run/fal-ai/flux/dev"}
    by_proxy = api.http.post(PROXY, json=DEV, headers=target)
    urls = [answer.json()["status_url"] for answer in (by_prefix, by_host, by_proxy)]
    ids = [answer.json()["request_id"] for answer in (by_prefix, by_host, by_proxy)]
    assert urls == [
        f"{api.url}/queue/fal-ai/flux/requests/{ids[0]}/status",
        f"http://queue.fal.run/fal-ai/flux/requests/{ids[1]}/status",
        f"{api.url}/queue/fal-ai/flux/requests/{ids[2]}/status",
    ]
    assert api.http.get(urls[2]).json()["request_id"] == ids[2]


def test_cancel_and_status_through_the_proxy(api: Api) -> None:
    job_id = api.submit()
    address = f"https://queue.fal.run/fal-ai/flux/requests/{job_id}"
    status = api.http.get(PROXY, headers={"x-fal-target-url": f"{address}/status?logs=1"})
    assert (status.status_code, status.json()["status"]) == (202, "IN_QUEUE")
    assert api.http.put(PROXY, headers={"x-fal-target-url": f"{address}/cancel"}).status_code == 202


@pytest.mark.parametrize("target", [None, "https://example.com/", "http://queue.fal.run.evil.test/"])
def test_the_proxy_relays_nowhere_else(api: Api, target: str | None) -> None:
    answer = api.http.post(PROXY, headers={"x-fal-target-url": target} if target else {})
    assert answer.status_code == 400
    assert "x-fal-target-url" in answer.json()["detail"]


def test_a_public_url_is_in_every_address(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path, public_url="https://pub.example/fal")) as api:
        body = api.http.post("/queue/fal-ai/flux/dev", json=DEV).json()
        assert body["response_url"].startswith("https://pub.example/fal/queue/fal-ai/flux/requests/")


def test_a_broken_host_is_400(api: Api) -> None:
    assert api.http.get("/livez", headers={"host": "a b"}).status_code == 400


# Keys


def test_a_locked_server_wants_the_key_everywhere_but_on_open_pages(locked: Api) -> None:
    for path in ("/queue/fal-ai/flux/dev", "/run/fal-ai/flux/dev", PROXY):
        headers = {"x-fal-target-url": "https://queue.fal.run/fal-ai/flux/dev"}
        answer = locked.http.post(path, json=DEV, headers=headers)
        assert answer.status_code == 401
        assert isinstance(answer.json()["detail"], str)
    assert locked.http.get("/queue/fal-ai/flux/requests/abc/status").status_code == 401
    assert locked.http.get("/v1/models").status_code == 401
    for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
        assert locked.http.get(path).status_code == 200
    key = locked.node.objects.put(b"x", "image/png", "png")
    assert locked.http.get(f"/files/{key}").status_code == 200


def test_the_key_opens_it(locked: Api) -> None:
    for value in ("Key id:secret", "key id:secret"):
        answer = locked.http.post("/queue/fal-ai/flux/dev", json=DEV, headers={"authorization": value})
        assert answer.status_code == 200
    wrong = locked.http.post("/queue/fal-ai/flux/dev", json=DEV, headers={"authorization": "Key id:other"})
    assert (wrong.status_code, wrong.json()) == (401, {"detail": "No user found for Key ID and Secret"})


def test_health_is_for_callers_on_this_machine(locked: Api) -> None:
    for path in ("/health", "/metrics"):
        assert locked.http.get(path).status_code == 200
        assert locked.http.get(path, headers={"x-forwarded-for": "203.0.113.9"}).status_code == 401


# Cross-origin


@pytest.mark.parametrize(
    "path", ["/queue/fal-ai/flux/dev", PROXY, "/files/x.png", "/rest/tokens/", "/livez", "/nonsense", "/v1/models"]
)
def test_preflight_needs_no_key_and_allows_what_is_asked(locked: Api, path: str) -> None:
    asked = {"origin": "https://page.test", "access-control-request-headers": "authorization,x-fal-new-header"}
    answer = locked.http.options(path, headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-fal-new-header" in answer.headers["access-control-allow-headers"]
    assert "PUT" in answer.headers["access-control-allow-methods"]


def test_a_public_page_may_ask_for_a_private_address(locked: Api) -> None:
    name = "access-control-allow-private-network"
    asked = {"origin": "https://page.test", "access-control-request-private-network": "true"}
    assert locked.http.options("/run/fal-ai/flux/dev", headers=asked).headers[name] == "true"
    assert name not in locked.http.options("/run/fal-ai/flux/dev", headers={"origin": "https://page.test"}).headers


def test_errors_are_readable_across_origins(locked: Api) -> None:
    answer = locked.http.post("/run/fal-ai/flux/dev", json=DEV, headers={"origin": "https://page.test"})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-fal-request-id" in answer.headers["access-control-expose-headers"]
    assert answer.headers["x-fal-request-id"]


# Our own pages


def test_head_is_get_without_a_body(api: Api) -> None:
    job_id = api.submit()
    api.node.finish(api.node.claim())
    asked = f"/queue/fal-ai/flux/requests/{job_id}"
    for path in ("/livez", "/readyz", "/health", "/", "/docs", "/openapi.json", "/v1/models", asked, f"{asked}/status"):
        got, head = api.http.get(path), api.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"], path
    assert api.http.head(f"{asked}/status/stream").status_code == 405
    assert api.http.head("/queue/fal-ai/flux/dev").status_code == 405


def test_health_pages(api: Api) -> None:
    assert api.http.get("/livez").json() == {"status": "ok"}
    assert api.http.get("/readyz").status_code == 200
    health = api.http.get("/health").json()
    assert (health["state"], health["version"]) == ("ready", VERSION)
    changes = api.http.get(health["changelog"])
    assert changes.text == (CHECKOUT / "CHANGELOG.md").read_text()
    assert changes.headers["content-type"] == "text/markdown; charset=utf-8"
    api.node.ready = False
    loading = api.http.get("/readyz/")
    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})


def test_metrics_count_answers_and_jobs(api: Api) -> None:
    api.submit()
    api.http.get("/queue/fal-ai/flux/requests/nobody/status")
    text = api.http.get("/metrics").text
    assert 'fluxserve_http_answers_total{area="queue",method="POST",status="200"} 1.0' in text
    assert 'fluxserve_http_answers_total{area="queue",method="GET",status="404"} 1.0' in text
    assert 'fluxserve_jobs{status="queued"} 1.0' in text
    assert 'fluxserve_worker_memory_bytes{device="cpu",kind="rss"} 1.0' in text


def test_the_model_list_speaks_fal_and_openai(api: Api) -> None:
    body = api.http.get("/v1/models").json()
    assert {entry["endpoint_id"] for entry in body["models"]} == set(ENDPOINTS) | set(UNSERVED)
    assert {entry["id"] for entry in body["data"]} == set(ENDPOINTS)
    (pro,) = api.http.get("/v1/models", params={"endpoint_id": "fal-ai/flux-pro"}).json()["models"]
    two = api.http.get("/v1/models", params={"endpoint_id": "fal-ai/flux-pro,fal-ai/flux/dev"}).json()["models"]
    assert {entry["endpoint_id"] for entry in two} == {"fal-ai/flux-pro", "fal-ai/flux/dev"}
    assert (pro["metadata"]["served_by"], pro["metadata"]["is_substitute"]) == ("FLUX.1-dev", True)
    assert len(api.http.get("/v1/models", params={"q": "schnell", "limit": 1}).json()["models"]) == 1
    assert api.http.get("/v1/models", params={"limit": 0}).status_code == 400


def test_fals_model_list_says_why_an_endpoint_is_never_answered_and_openais_leaves_it_out(api: Api) -> None:
    name = "fal-ai/flux-pulid"
    body = api.http.get("/v1/models", params={"endpoint_id": name, "expand": "openapi-3.0"}).json()
    (entry,) = body["models"]
    assert entry["metadata"]["status"] == "unavailable"
    assert entry["metadata"]["reason"] == api.http.post(f"/run/{name}", json={}).json()["detail"]
    assert "openapi" not in entry
    assert body["data"] == []
    assert api.http.get(f"/v1/models/{name}").status_code == 404
    for narrowed in ({"status": "active"}, {"category": "text-to-image"}):
        listed = api.http.get("/v1/models", params=narrowed).json()["models"]
        assert listed
        assert not {entry["endpoint_id"] for entry in listed} & set(UNSERVED)
    assert name in {entry["endpoint_id"] for entry in api.http.get("/v1/models?q=pulid").json()["models"]}


def test_the_model_list_has_pages(api: Api) -> None:
    seen, cursor = [], None
    for _ in range(len(ENDPOINTS) + len(UNSERVED)):
        page = api.http.get("/v1/models", params={"limit": 7} | ({"cursor": cursor} if cursor else {})).json()
        seen += [entry["endpoint_id"] for entry in page["models"]]
        assert page["has_more"] == (page["next_cursor"] is not None)
        if (cursor := page["next_cursor"]) is None:
            break
    assert seen == [*ENDPOINTS, *UNSERVED]
    assert api.http.get("/v1/models", params={"cursor": "nonsense"}).status_code == 400


def test_the_model_list_says_what_programs_choose_by(api: Api) -> None:
    asked = {"category": "text-to-image", "endpoint_id": "fal-ai/flux/dev", "expand": "openapi-3.0"}
    (entry,) = api.http.get("/v1/models", params=asked).json()["models"]
    assert {"display_name", "category", "description", "status", "tags", "thumbnail_url"} <= entry["metadata"].keys()
    assert entry["openapi"]["info"]["x-fal-metadata"]["endpointId"] == "fal-ai/flux/dev"
    picture = api.http.get(entry["metadata"]["thumbnail_url"])
    assert picture.headers["content-type"] == "image/svg+xml"
    assert api.http.get("/v1/models", params=asked | {"category": "control"}).json()["models"] == []


def test_nothing_costs_anything(api: Api) -> None:
    (price,) = api.http.get("/v1/models/pricing", params={"endpoint_id": "fal-ai/flux/dev"}).json()["prices"]
    assert price == {"endpoint_id": "fal-ai/flux/dev", "unit_price": 0.0, "unit": "megapixels", "currency": "USD"}
    asked = {"estimate_type": "unit_price", "endpoints": {"fal-ai/flux/dev": {"unit_quantity": 9}}}
    assert api.http.post("/v1/models/pricing/estimate", json=asked).json()["total_cost"] == 0
    assert api.http.get("/v1/models/usage").json()["has_more"] is False
    unknown = api.http.get("/v1/models/pricing", params={"endpoint_id": "fal-ai/flux/dev,a/b"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert api.http.get("/v1/models/requests/by-endpoint").json()["items"] == []


def test_language_models_read_of_every_endpoint_that_is_answered(locked: Api) -> None:
    index = locked.http.get("/llms.txt")
    assert index.headers["content-type"].startswith("text/markdown")
    assert "/models/fal-ai/flux/dev/llms.txt" in index.text
    assert "Authorization: Key YOUR_KEY" in index.text
    assert "fal-ai/flux-kontext/dev/llms.txt" not in index.text, "no checkpoint here answers it"
    one = locked.http.get("/models/fal-ai/flux/dev/llms.txt").text
    fields = [line for line in one.splitlines() if line.startswith("- **`")]
    assert fields[0].startswith("- **`prompt`** (`string`, required)")
    (steps,) = (line for line in fields if "num_inference_steps" in line)
    assert "at least 1; at most 50" in steps
    (size,) = (line for line in fields if "image_size" in line)
    assert '`"portrait_4_3"`' in size
    assert "an object of `width`, `height`" in size
    assert locked.http.get("/models/a/b/llms.txt").status_code == 404


def test_the_example_of_every_endpoint_is_an_input_of_it(api: Api) -> None:
    for endpoint in ENDPOINTS.values():
        text = api.http.get(f"/models/{endpoint.id}/llms.txt").text
        (line,) = (line for line in text.splitlines() if line.startswith("curl "))
        assert "Authorization" not in line, "this server is open"
        endpoint.schema.model_validate(json.loads(line.partition(" -d '")[2].removesuffix("'")))


def test_fals_sites_list_is_searched_and_paged_without_a_key(locked: Api) -> None:
    everything = locked.http.get("/api/models", params={"total": 1000}).json()
    ids = [item["id"] for item in everything["items"]]
    assert "fal-ai/flux/dev" in ids
    assert "fal-ai/flux-kontext/dev" not in ids, "no checkpoint here answers it"
    assert (everything["total"], everything["pages"]) == (len(ids), 1)
    found = locked.http.get("/api/models", params={"keywords": "flux schnell", "categories": "text-to-image"}).json()
    assert [item["id"] for item in found["items"]] == [name for name in ids if name.endswith("/schnell")]
    second = locked.http.get("/api/models", params={"page": 2, "total": 3}, headers={"host": "fal.ai"}).json()
    assert [item["id"] for item in second["items"]] == ids[3:6]
    assert locked.http.get("/api/models", params={"page": 10_000}).json()["items"] == []


def test_the_hubs_question_about_a_repository(locked: Api) -> None:
    asked = "/api/models/black-forest-labs/FLUX.1-schnell?expand=inferenceProviderMapping"
    mapping = locked.http.get(asked).json()["inferenceProviderMapping"]["fal-ai"]
    assert mapping == {"status": "live", "providerId": "fal-ai/flux/schnell", "task": "text-to-image"}
    assert locked.http.get("/api/models/a/b").status_code == 404


def test_an_alias_answers_as_the_other_and_is_called_a_substitute(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "ENDPOINTS", dict(ENDPOINTS))
    monkeypatch.setattr(catalogue, "ENDPOINTS", endpoints.ENDPOINTS)
    endpoints.add_aliases(["fal-ai/flux-2-max=fal-ai/flux/schnell", "rundiffusion-fal/juggernaut=fal-ai/flux/dev"])
    entries = {entry["endpoint_id"]: entry["metadata"] for entry in api.http.get("/v1/models").json()["models"]}
    assert entries["fal-ai/flux-2-max"]["alias_of"] == "fal-ai/flux/schnell"
    assert entries["rundiffusion-fal/juggernaut"]["is_substitute"]
    job_id = api.submit("fal-ai/flux-2-max", prompt="a")
    assert api.http.get(f"/queue/fal-ai/flux-2-max/requests/{job_id}/status").status_code == 202
    names = [
        operation["operationId"]
        for path in api.http.get("/openapi.json").json()["paths"].values()
        for operation in path.values()
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("alias", "says"),
    [
        ("fal-ai/x", "give ID=ID"),
        ("x=fal-ai/flux/dev", "give ID=ID"),
        ("a/requests/b=fal-ai/flux/dev", "give ID=ID"),
        ("a/b=fal-ai/nope", "not an endpoint"),
        ("fal-ai/flux/dev=fal-ai/flux/schnell", "served already"),
    ],
)
def test_an_alias_that_cannot_be_is_refused(alias: str, says: str) -> None:
    with pytest.raises(endpoints.AliasError, match=says):
        endpoints.add_aliases([alias])


def test_openapi_describes_every_endpoint(api: Api) -> None:
    document = api.http.get("/openapi.json").json()
    for endpoint in ENDPOINTS:
        assert f"/run/{endpoint}" in document["paths"]
        assert f"/queue/{endpoint}" in document["paths"]
    schemas = document["components"]["schemas"]
    references = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.update([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(schemas)
    names = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))


def test_what_anybody_may_ask_is_described_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []
    describe = BaseModel.model_json_schema.__func__  # type: ignore[attr-defined]

    def counted(kind: type[BaseModel], *arguments: Any, **named: Any) -> Any:
        described.append(kind.__name__)
        return describe(kind, *arguments, **named)

    monkeypatch.setattr(BaseModel, "model_json_schema", classmethod(counted))
    paths = ("/", "/docs", "/openapi.json", "/v1/models?expand=openapi-3.0")

    def described_for(host: str) -> list[str]:
        described.clear()
        assert [api.http.get(path, headers={"host": host}).status_code for path in paths] == [200] * len(paths)
        return list(described)

    described_for("a.test")
    assert described_for("b.test") == []
    assert api.http.get("/api/models", params={"keywords": 201 * "a"}).status_code == 422


def test_openapi_asks_for_a_key_where_the_server_does(api: Api, locked: Api) -> None:
    assert "security" not in api.http.get("/openapi.json").json()
    assert locked.http.get("/openapi.json").json()["security"] == [{"apiKeyAuth": []}]


def test_answers_are_as_openapi_says(api: Api) -> None:
    def check(name: str, answer: httpx.Response) -> None:
        model = {model.__name__: model for model in answers.ALL}[name]
        assert set(answer.json()) <= set(model.model_fields)
        model.model_validate(answer.json(), strict=True)

    job_id = api.submit()
    base = f"/queue/fal-ai/flux/requests/{job_id}"
    check("QueueStatus", api.http.post("/queue/fal-ai/flux/dev", json=DEV))
    check("QueueStatus", api.http.get(f"{base}/status"))
    check("ErrorAnswer", api.http.get(base))
    job = api.node.claim()
    api.node.step(job, 1)
    check("QueueStatus", api.http.get(f"{base}/status?logs=1"))
    api.node.finish(job)
    check("QueueStatus", api.http.get(f"{base}/status?logs=1"))
    check("Output", api.http.get(base))
    check("ErrorAnswer", api.http.put(f"{base}/cancel"))
    check("ErrorAnswer", api.http.post("/run/fal-ai/flux/dev", json={"num_images": 0}))


def test_one_endpoint_has_its_own_openapi(api: Api) -> None:
    address = "/api/openapi/queue/openapi.json"
    document = api.http.get(address, params={"endpoint_id": "fal-ai/flux-pro/v1.1"}).json()
    assert document["info"]["title"] == "Queue OpenAPI for fal-ai/flux-pro/v1.1"
    assert document["info"]["x-fal-metadata"]["endpointId"] == "fal-ai/flux-pro/v1.1"
    assert "FluxProV11Input" in document["components"]["schemas"]
    assert api.http.get(address, params={"endpoint_id": "a/b"}).status_code == 404


def test_the_documentation_needs_nothing_from_outside(api: Api) -> None:
    page = api.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text
    assert "src=" not in page.text
    assert 'href="http' not in page.text
    for endpoint in ENDPOINTS:
        assert f'id="{endpoint}"' in page.text
    assert api.http.get("/").text == page.text


@pytest.mark.parametrize("path", ["/v1/nothing", "/docs/nothing", "/rest/nothing", "/ws/a/b", "/favicon.ico"])
def test_unknown_pages_are_json_404(api: Api, path: str) -> None:
    answer = api.http.get(path)
    assert answer.status_code == 404
    assert answer.json().keys() <= {"detail", "error"}


# A bug


def test_a_bug_is_a_500_that_says_nothing_of_our_insides(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(job_id: str, tenant: str) -> None:
        raise ZeroDivisionError("/secret/path")

    monkeypatch.setattr(api.node.store, "state", broken)
    with caplog.at_level(logging.ERROR):
        answer = api.http.get("/queue/fal-ai/flux/requests/abc/status")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Internal server error", "error_type": "internal_error"}
    assert answer.headers["x-fal-request-id"] == "abc"
    assert "request_id=abc" in caplog.text
    assert "/secret/path" in caplog.text


def test_a_bug_in_our_own_pages_looks_the_same(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(api.node, "health", broken)
    answer = api.http.get("/health")
    assert (answer.status_code, answer.json()["error_type"]) == (500, "internal_error")
