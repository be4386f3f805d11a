"""A repeated request is answered from its pictures: only the same, only its own tenant's, only while they are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from websockets.sync.client import connect

from models.fingerprint import fingerprint
from models.registry import ModelSpec
from server.app import create_app
from server.gateway.key_file import KeyFile
from server.jobs.limits import BudgetRule, Limits
from server.jobs.result_cache import ResultCache
from server.jobs.store.job import NewJob
from server.node import Node
from server.settings import Settings
from tests.server.api_server import eventually, listening
from tests.server.receiver import receiving

DEV = "fal-ai/flux/dev"
SEEDED = {"prompt": "a fox", "seed": 7, "image_size": {"width": 64, "height": 64}, "num_inference_steps": 2}
ANN, BOB = {"authorization": "Key ann:secret"}, {"authorization": "Key bob:secret"}


class Asked:
    """A server with the cache, an engine that pretends, and two keys."""

    def __init__(self, node: Node, url: str, http: httpx.Client) -> None:
        self.node, self.url, self.http = node, url, http

    def run(
        self, caller: dict[str, str] = ANN, headers: dict[str, str] | None = None, **changes: Any
    ) -> httpx.Response:
        """One picture by the run area; `changes` to the input, None takes a field out."""
        body = {name: value for name, value in (SEEDED | changes).items() if value is not None}
        answer = self.http.post(f"/run/{DEV}", json=body, headers=caller | (headers or {}))
        assert answer.status_code == 200, answer.text
        return answer

    def is_hit(self, caller: dict[str, str] = ANN, headers: Any = None, **changes: Any) -> bool:
        return self.run(caller, headers, **changes).headers.get("x-fluxserve-cache") == "hit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def settings(folder: Path, **changes: Any) -> Settings:
    keys = ("ann:secret", "bob:secret")
    values = {"models": ("fake:",), "device": "cpu", "api_keys": keys, "result_cache": True} | changes
    return Settings(data_dir=folder, allow_private_cidrs=("127.0.0.0/8",), **values)


@pytest.fixture(scope="module")
def asked(folder: Path) -> Iterator[Asked]:
    node = Node.from_settings(settings(folder))
    with listening(create_app(node)) as url, httpx.Client(base_url=url, timeout=30) as http:
        eventually(lambda: http.get("/readyz").status_code == 200, within_s=30)
        yield Asked(node, url, http)


def picture(asked: Asked, answer: httpx.Response) -> bytes:
    found = asked.http.get(answer.json()["images"][0]["url"])
    assert found.status_code == 200
    return found.content


def test_the_same_request_has_the_same_picture_in_a_file_of_its_own(asked: Asked) -> None:
    first, again = asked.run(prompt="the same"), asked.run(prompt="the same")
    assert "x-fluxserve-cache" not in first.headers
    assert again.headers["x-fluxserve-cache"] == "hit"
    assert (first.headers["x-fal-billable-units"], again.headers["x-fal-billable-units"]) == ("1", "0")
    assert picture(asked, again) == picture(asked, first)
    one, other = first.json(), again.json()
    assert one["images"][0]["url"] != other["images"][0]["url"]
    assert one["seed"] == other["seed"] == 7
    assert set(one) == set(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"seed": None},
        {"prompt": "another fox"},
        {"num_inference_steps": 3},
        {"num_images": 2},
        {"output_format": "png"},
        {"image_size": {"width": 64, "height": 80}},
        {"enable_safety_checker": False},
    ],
)
def test_another_request_is_drawn(asked: Asked, changes: dict[str, Any]) -> None:
    asked.run()
    if changes == {"seed": None}:
        asked.run(seed=None)
    assert not asked.is_hit(**changes)


def test_a_field_spelled_out_with_its_default_is_no_other_request(asked: Asked) -> None:
    asked.run(prompt="spelled out")
    assert asked.is_hit(prompt="spelled out", guidance_scale=3.5, num_images=1)


def test_tenants_never_share(asked: Asked) -> None:
    asked.run(ANN, prompt="mine")
    assert not asked.is_hit(BOB, prompt="mine")
    assert asked.is_hit(BOB, prompt="mine")
    assert asked.is_hit(ANN, prompt="mine")


def test_a_hit_counts_as_a_submit_and_uses_no_budget(asked: Asked, folder: Path) -> None:
    limits, budget = Limits(per_minute=4), BudgetRule.parse("1mp/day")
    key, _ = KeyFile(folder / "keys.json").issue("eve", limits=limits, budgets=[budget])
    eve = {"authorization": f"Key {key}"}
    eventually(lambda: asked.http.get("/v1/models", headers=eve).status_code == 200, within_s=10)

    def submit(**changes: Any) -> httpx.Response:
        return asked.http.post(f"/run/{DEV}", json=SEEDED | changes, headers=eve)

    assert not asked.is_hit(eve)
    assert submit(prompt="beyond the budget").status_code == 403
    again = [submit() for _ in range(2)]
    assert [answer.headers.get("x-fluxserve-cache") for answer in again] == ["hit", "hit"]
    refused = submit()
    assert (refused.status_code, "minute" in refused.text) == (429, True)


def test_a_hit_that_comes_twice_leaves_no_second_copy(asked: Asked, folder: Path) -> None:
    asked.run(prompt="twice")

    def submit() -> str:
        body = SEEDED | {"prompt": "twice"}
        answer = asked.http.post(f"/queue/{DEV}", json=body, headers=ANN | {"idempotency-key": "one submit"})
        return str(answer.json()["request_id"])

    first, files = submit(), sorted((folder / "files").rglob("*"))
    assert submit() == first
    assert sorted((folder / "files").rglob("*")) == files


def test_what_is_not_to_be_stored_is_neither_kept_nor_answered_from_the_store(asked: Asked) -> None:
    private = {"x-fal-store-io": "0"}
    asked.run(headers=private, prompt="private")
    assert not asked.is_hit(prompt="private")
    assert not asked.is_hit(headers=private, prompt="private")


def test_a_picture_that_is_gone_is_drawn_again(asked: Asked) -> None:
    for answer in (asked.run(prompt="gone"), asked.run(prompt="gone")):
        asked.node.objects.delete(answer.json()["images"][0]["file_name"])
    assert not asked.is_hit(prompt="gone")
    assert asked.is_hit(prompt="gone")


def test_sync_mode_reads_the_store_and_adds_nothing_to_it(asked: Asked) -> None:
    assert not asked.is_hit(prompt="inline", sync_mode=True)
    assert not asked.is_hit(prompt="inline", sync_mode=True)
    stored = asked.run(prompt="inline")
    inline = asked.run(prompt="inline", sync_mode=True)
    assert inline.headers["x-fluxserve-cache"] == "hit"
    (entry,) = inline.json()["images"]
    assert httpx.get(stored.json()["images"][0]["url"]).status_code == 200
    assert entry["url"].startswith("data:image/jpeg;base64,")
    assert entry["file_name"] is None
    assert asked.is_hit(prompt="inline")
    assert asked.is_hit(prompt="inline", sync_mode=True)
    assert asked.is_hit(prompt="inline")


def test_the_queue_tells_log_status_webhook_and_usage_of_it(asked: Asked) -> None:
    drawn = asked.run(prompt="queued", headers={"x-fal-tags": "team=web"}).headers["x-fal-request-id"]
    before = usage(asked)
    with receiving() as receiver:
        url = f"/queue/{DEV}?fal_webhook={quote(receiver.url, safe='')}"
        tags = {"x-fal-tags": "team=web"}
        handle = asked.http.post(url, json=SEEDED | {"prompt": "queued"}, headers=ANN | tags).json()
        status = asked.http.get(handle["status_url"], params={"logs": 1}, headers=ANN)
        eventually(lambda: receiver.calls)
        (told,) = receiver.payloads
    assert status.status_code == 200
    body = status.json()
    assert [line["message"] for line in body["logs"]] == [
        "tags: team=web",
        f"answered from the pictures of request {drawn}",
    ]
    assert body["metrics"] == {"inference_time": 0.0, "cached_request_id": drawn}
    assert (told["request_id"], told["status"]) == (handle["request_id"], "OK")
    assert told["payload"]["images"][0]["file_name"] != ""
    after = usage(asked)
    assert (after["requests"] - before["requests"], after["quantity"] - before["quantity"]) == (1, 0)
    metrics = asked.http.get("/metrics", headers=ANN).text
    assert f'fluxserve_cached_requests_total{{endpoint="{DEV}"}}' in metrics


def usage(asked: Asked) -> dict[str, Any]:
    answer = asked.http.get("/v1/models/usage", params={"expand": "summary"}, headers=ANN).json()
    rows: list[dict[str, Any]] = answer["summary"]
    return rows[0]


def test_streams_and_sockets_are_answered_too(asked: Asked) -> None:
    asked.run(prompt="streamed")
    text = asked.http.post(f"/run/{DEV}/stream", json=SEEDED | {"prompt": "streamed"}, headers=ANN).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert len(events) == 1
    assert events[0]["timings"] == {"inference": 0.0}
    with connect(f"{asked.url.replace('http', 'ws')}/run/{DEV}/realtime", additional_headers=ANN) as socket:
        socket.send(json.dumps(SEEDED | {"prompt": "streamed"}))
        assert json.loads(socket.recv(timeout=30))["timings"] == {"inference": 0.0}


def test_what_brings_a_picture_is_always_drawn(asked: Asked) -> None:
    own = asked.run(prompt="to be changed").json()["images"][0]["url"]
    body = {"prompt": "a fox", "seed": 7, "image_url": own}
    for _ in range(2):
        answer = asked.http.post(f"/run/{DEV}/image-to-image", json=body, headers=ANN)
        assert (answer.status_code, answer.headers.get("x-fluxserve-cache")) == (200, None), answer.text


def test_another_build_looks_under_another_key(asked: Asked) -> None:
    new = NewJob("x", DEV, {}, {"seed": 7}, is_repeatable=True)
    one, same, other = (ResultCache(asked.node.store, asked.node.outputs, build) for build in ("a", "a", "b"))
    assert one.answered(new).picture_key == same.answered(new).picture_key != other.answered(new).picture_key
    assert fingerprint((), "float32") == fingerprint((), "float32") != fingerprint((), "bfloat16")


def test_weights_that_changed_are_another_build(tmp_path: Path) -> None:
    weights = tmp_path / "transformer" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"one")
    spec = ModelSpec(name="mine", source=str(tmp_path))
    before = fingerprint((spec,))
    assert fingerprint((spec,)) == before
    weights.write_bytes(b"other")
    assert fingerprint((spec,)) != before
    assert fingerprint((replace(spec, source="random:FLUX.1-dev"),)) != before


def test_without_the_setting_everything_is_drawn(tmp_path: Path) -> None:
    node = Node.from_settings(settings(tmp_path, result_cache=False))
    assert node.jobs.cache is None
    node.store.close()
