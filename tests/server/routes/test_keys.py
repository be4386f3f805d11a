"""API keys over HTTP in fal's words, and usage as a table: for an operator's key only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.gateway.key_file import KeyFile
from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve

OPERATOR = {"authorization": "Key op:secret"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    store = SqliteStore(tmp_path / "jobs.db")
    with serve(ApiNode(tmp_path, store, api_keys=("op:secret",))) as served:
        yield served
    store.close()


def make(api: Api, **about: Any) -> dict[str, Any]:
    answer = api.http.post("/v1/keys", json={"alias": "app"} | about, headers=OPERATOR)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def listed(api: Api, **query: Any) -> Any:
    return api.http.get("/v1/keys", params=query, headers=OPERATOR).json()


def draw(api: Api, key: str, tags: str = "") -> int:
    headers = {"authorization": f"Key {key}", "x-fal-tags": tags}
    return api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}, headers=headers).status_code


def test_a_key_is_made_used_changed_and_ended(api: Api) -> None:
    made = make(api, alias="the app", scopes=["queue"], limits={"per_minute": 1}, budgets=["200mp/month"])
    assert made["key"] == f"{made['key_id']}:{made['key_secret']}"
    entry = listed(api)["keys"][0]
    assert (entry["alias"], entry["scope"], entry["scopes"]) == ("the app", "API", ["queue"])
    assert (entry["limits"]["per_minute"], entry["budgets"][0]["rule"]) == (1, "200mp/month")
    assert made["key_secret"] not in str(listed(api))
    assert [draw(api, made["key"]), draw(api, made["key"])] == [200, 429]
    change = {"alias": "app 2", "limits": {"waiting": 5}, "budgets": ["1mp/day"]}
    changed = api.http.patch(f"/v1/keys/{made['key_id']}", json=change, headers=OPERATOR).json()
    assert (changed["alias"], changed["budgets"][0]["used"]) == ("app 2", 1)
    assert draw(api, made["key"]) == 403  # the new budget holds at once
    address = f"/v1/keys/{made['key_id']}"
    assert [api.http.delete(address, headers=OPERATOR).status_code for _ in range(2)] == [204, 204]
    assert draw(api, made["key"]) == 401
    assert api.http.patch(address, json=change, headers=OPERATOR).status_code == 404
    assert [key["is_configured"] for key in listed(api)["keys"]] == [True]
    (revoked, _) = listed(api, include_revoked=True)["keys"]
    assert revoked["revoked_at"] >= revoked["created_at"]


def test_keys_come_page_by_page_the_newest_first(api: Api) -> None:
    ids = [make(api)["key_id"] for _ in range(3)]
    first = listed(api, limit=2)
    rest = listed(api, limit=2, cursor=first["next_cursor"])
    assert [key["key_id"] for key in first["keys"] + rest["keys"]][:3] == ids[::-1]
    assert (first["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"alias": ""},
        {"alias": "a\nb"},
        {"alias": "\x1b[31mred"},
        {"alias": "a", "scopes": ["root"]},
        {"alias": "a", "budgets": ["5"]},
        {"alias": "a", "x": 1},
    ],
)
def test_what_cannot_be_meant_makes_no_key(api: Api, body: dict[str, Any]) -> None:
    answer = api.http.post("/v1/keys", json=body, headers=OPERATOR)
    assert (answer.status_code, bool(answer.json()["error"]["message"])) == (400, True)
    assert len(listed(api)["keys"]) == 1


def test_the_key_that_asks_is_not_ended(api: Api) -> None:
    made = make(api, scopes=["admin"])
    own = {"authorization": f"Key {made['key']}"}
    assert api.http.delete(f"/v1/keys/{made['key_id']}", headers=own).status_code == 409
    assert api.http.get("/v1/keys", headers=own).status_code == 200


def test_only_an_operators_key_may(api: Api) -> None:
    key = make(api)["key"]
    for method, path in (("GET", "/v1/keys"), ("POST", "/v1/keys"), ("DELETE", "/v1/keys/x"), ("PATCH", "/v1/keys/x")):
        answer = api.http.request(method, path, headers={"authorization": f"Key {key}"})
        assert (answer.status_code, "admin" in answer.text) == (403, True)
        assert api.http.request(method, path).status_code == 401


def test_nobody_makes_the_first_key_of_an_open_server_over_http(tmp_path: Path) -> None:
    with serve(ApiNode(tmp_path)) as opened:
        answer = opened.http.post("/v1/keys", json={"alias": "mine", "scopes": ["admin"]})
        assert (answer.status_code, "fluxserve keys new" in answer.text) == (403, True)
        assert KeyFile(tmp_path / "keys.json").read() == ()


def test_usage_comes_as_a_table_in_which_no_label_is_a_formula(api: Api) -> None:
    key = make(api)
    for _ in range(2):
        draw(api, key["key"], "team==1+1")
        api.node.finish(api.node.claim())
    query = {"all_keys": True, "format": "csv"}
    answer = api.http.get("/v1/models/usage", params=query, headers=OPERATOR)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "usage.csv" in answer.headers["content-disposition"]
    (line,) = csv.DictReader(io.StringIO(answer.text))
    assert (line["auth_method"], line["requests"], line["images"], line["gpu_seconds"]) == (
        key["key_id"], "2", "2", "2.5",
    )  # fmt: skip
    labelled = api.http.get("/v1/models/usage", params=query | {"tag": "team"}, headers=OPERATOR)
    assert "'=1+1" in labelled.text
