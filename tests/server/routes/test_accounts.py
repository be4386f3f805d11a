"""Usage, prices and request search over HTTP: everybody's own, with the operator's prices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.gateway.key_file import KeyFile
from server.jobs.limits import BudgetRule
from server.jobs.store.job import JobStatus
from server.jobs.store.sqlite import SqliteStore
from tests.server.api_node import ApiNode
from tests.server.api_server import Api, eventually, serve

ANN, BOB = "Key ann:secret", "Key bob:secret"
BY_ENDPOINT = "/v1/models/requests/by-endpoint"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    prices = tmp_path / "prices.toml"
    prices.write_text('currency = "EUR"\n[megapixel]\n"fal-ai/flux/dev" = 0.025\n')
    store = SqliteStore(tmp_path / "jobs.db")
    with serve(ApiNode(tmp_path, store, api_keys=("ann:secret", "bob:secret"), prices=prices)) as served:
        yield served
    store.close()


def draw(api: Api, key: str = ANN, tags: str = "", is_finished: bool = True) -> str:
    headers = {"authorization": key, "x-fal-tags": tags}
    answer = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}, headers=headers)
    if is_finished:
        api.node.finish(api.node.claim())
    return str(answer.json()["request_id"])


def ask(api: Api, path: str, key: str = ANN, **query: Any) -> Any:
    answer = api.http.get(path, params=query, headers={"authorization": key})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(api: Api, path: str, key: str = ANN, **query: Any) -> tuple[int, str]:
    answer = api.http.get(path, params=query, headers={"authorization": key})
    return answer.status_code, answer.text


def test_usage_is_ones_own_with_the_operators_prices(api: Api) -> None:
    draw(api)
    draw(api)
    draw(api, BOB)
    (bucket,) = ask(api, "/v1/models/usage")["time_series"]
    (line,) = bucket["results"]
    key = line.pop("auth_method")
    assert line == {
        "endpoint_id": "fal-ai/flux/dev",
        "unit": "megapixels",
        "quantity": 2,
        "unit_price": 0.025,
        "cost": 0.05,
        "currency": "EUR",
        "requests": 2,
        "failures": 0,
        "images": 2,
        "gpu_seconds": 2.5,
    }
    assert bucket["bucket"].endswith("T00:00:00.000+00:00")
    (total,) = ask(api, "/v1/models/usage", expand="summary", auth_method=key)["summary"]
    assert total["quantity"] == 2
    assert len(ask(api, "/v1/models/usage", expand="summary", all_keys=True)["summary"]) == 2
    assert ask(api, "/v1/models/usage", start="2020-01-01", end="2020-02-01")["time_series"] == []


def test_usage_is_told_apart_by_a_tag_and_paged(api: Api) -> None:
    for team in ("web", "app", "web"):
        draw(api, tags=f"team={team}")
    first = ask(api, "/v1/models/usage", tag="team", limit=1)
    second = ask(api, "/v1/models/usage", tag="team", limit=1, cursor=first["next_cursor"])
    lines = [page["time_series"][0]["results"][0] for page in (first, second)]
    assert [(line["tags"], line["requests"]) for line in lines] == [({"team": "app"}, 1), ({"team": "web"}, 2)]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)


def test_requests_are_found_page_by_page_and_nobody_elses(api: Api) -> None:
    ids = [draw(api, tags="team=web") for _ in range(3)]
    draw(api, tags="team=app")
    draw(api, BOB, tags="team=web")
    waiting = draw(api, is_finished=False)
    first = ask(api, BY_ENDPOINT, tag="team=web", limit=2)
    second = ask(api, BY_ENDPOINT, tag="team=web", limit=2, cursor=first["next_cursor"])
    assert [item["request_id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert (second["has_more"], second["next_cursor"]) == (False, None)
    item = second["items"][0]
    assert (item["status_code"], item["billable_units"], item["tags"]) == (200, 1, {"team": "web"})
    assert item["sent_at"] <= item["started_at"] <= item["ended_at"]
    assert "json_input" not in item
    (seen,) = ask(api, BY_ENDPOINT, status="queued", expand="payloads")["items"]
    assert (seen["request_id"], seen["json_input"], seen["json_output"]) == (waiting, {"prompt": "a fox"}, None)


def test_several_states_are_asked_for_with_commas_or_repeated(api: Api) -> None:
    ids = [draw(api), draw(api, is_finished=False)]
    both: Any
    for both in ("success,queued", ["success", "queued"], ["success,failed", "queued"]):
        assert [item["request_id"] for item in ask(api, BY_ENDPOINT, status=both)["items"]] == ids[::-1]
    assert refusal(api, BY_ENDPOINT, status="success,done")[0] == 400


def test_requests_are_found_by_words_of_their_prompt(api: Api) -> None:
    headers = {"authorization": ANN}
    for prompt in ("A violet hexagon, large", "a violet square", 'say "NEAR(x)"'):
        assert api.http.post("/queue/fal-ai/flux/dev", json={"prompt": prompt}, headers=headers).status_code == 200
    api.http.post(
        "/queue/fal-ai/flux/dev", json={"prompt": "a violet secret"}, headers=headers | {"x-fal-store-io": "0"}
    )

    def found(text: str) -> int:
        return len(ask(api, BY_ENDPOINT, q=text)["items"])

    assert [found("violet"), found("VIOL hex"), found("violet circle"), found("secret")] == [2, 1, 0, 0]
    assert [found('near(x" OR *'), found("say NEAR"), found("!!!")] == [0, 1, 0]
    everything = len(ask(api, BY_ENDPOINT)["items"])
    assert [found(" "), found("\0"), found("violet " * 20 + "square")] == [everything, everything, 1]
    assert api.http.get(BY_ENDPOINT, params=[("tag", "a=b")] * 11, headers=headers).status_code == 400
    assert len(ask(api, BY_ENDPOINT, BOB, q="violet")["items"]) == 0


def test_a_request_is_deleted_with_its_pictures_and_stays_counted(api: Api) -> None:
    kept, gone = draw(api), draw(api)
    (item,) = ask(api, BY_ENDPOINT, request_id=gone, expand="payloads")["items"]
    address = item["json_output"]["images"][0]["url"]
    assert api.http.get(address).status_code == 200
    path = f"/v1/models/requests/{gone}/payloads"
    answer = api.http.delete(path, headers={"authorization": ANN})
    (file,) = answer.json()["cdn_delete_results"]
    assert (answer.status_code, file["exception"], file["link"]) == (200, None, f"{api.url}{address}")
    assert api.http.get(address).status_code == 404
    assert [item["request_id"] for item in ask(api, BY_ENDPOINT)["items"]] == [kept]
    assert api.http.get(f"/queue/fal-ai/flux/requests/{gone}", headers={"authorization": ANN}).status_code == 404
    assert api.http.delete(path, headers={"authorization": ANN}).status_code == 404
    assert api.node.store.counts()[JobStatus.COMPLETED] == 1
    (total,) = ask(api, "/v1/models/usage", expand="summary")["summary"]
    assert total["requests"] == 2


def test_nobody_deletes_what_is_not_theirs_or_has_not_ended(api: Api, tmp_path: Path) -> None:
    key, _ = KeyFile(tmp_path / "keys.json").issue("app")
    done, waiting = draw(api), draw(api, is_finished=False)
    address = "/v1/models/requests/{}/payloads".format
    assert api.http.delete(address(done), headers={"authorization": f"Key {key}"}).status_code == 404
    assert api.http.delete(address(waiting), headers={"authorization": ANN}).status_code == 409
    assert api.http.delete(address(done), headers={"authorization": BOB}).status_code == 200  # BOB has the scope admin


def test_what_cannot_be_meant_is_refused_in_words(api: Api) -> None:
    assert refusal(api, BY_ENDPOINT, status="done")[0] == 400
    assert "start" in refusal(api, BY_ENDPOINT, start="soon")[1]
    assert refusal(api, BY_ENDPOINT, cursor="nonsense")[0] == 400
    assert refusal(api, "/v1/models/usage", end="9" * 30)[0] == 400
    assert ask(api, "/v1/models/usage", start="0001-01-01", end="9999-12-31T23:59:59-12:00")["time_series"] == []


def test_only_a_key_with_the_scope_admin_sees_everybodys_usage(api: Api, tmp_path: Path) -> None:
    key, _ = KeyFile(tmp_path / "keys.json").issue("app", None)
    status, text = refusal(api, "/v1/models/usage", f"Key {key}", all_keys=True)
    assert (status, "admin" in text) == (403, True)


def test_a_key_over_its_budget_is_refused_in_fals_words_until_the_operator_raises_it(api: Api, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, issued = keys.issue("app", budgets=[BudgetRule.parse("0.05/day"), BudgetRule.parse("100mp/month")])
    headers = {"authorization": f"Key {key}"}
    draw(api, f"Key {key}")
    draw(api, f"Key {key}", is_finished=False)
    refused = api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}, headers=headers)
    assert (refused.status_code, refused.headers["x-fal-retryable"]) == (403, "false")
    assert refused.json()["detail"].startswith("User is locked. Reason: Exhausted balance.")
    assert "0.05 EUR a day" in refused.json()["detail"]
    at_openai = api.http.post("/v1/images/generations", json={"prompt": "a fox"}, headers=headers)
    assert (at_openai.status_code, at_openai.json()["error"]["code"]) == (403, "budget_exceeded")
    shown = ask(api, "/v1/models/usage", f"Key {key}")["budgets"]
    assert [(line["used"], line["amount"], line["unit"]) for line in shown] == [
        (0.05, 0.05, "EUR"),
        (2, 100, "megapixels"),
    ]
    assert "budgets" not in ask(api, "/v1/models/usage")
    draw(api, is_finished=False)
    keys.change(issued.id, budgets=[BudgetRule.parse("1/day")])
    eventually(lambda: ask(api, "/v1/models/usage", f"Key {key}")["budgets"][0]["amount"] == 1)
    draw(api, f"Key {key}", is_finished=False)


def test_prices_are_the_operators(api: Api) -> None:
    (price,) = ask(api, "/v1/models/pricing", endpoint_id="fal-ai/flux/dev")["prices"]
    assert (price["unit_price"], price["currency"]) == (0.025, "EUR")
    asked = {"estimate_type": "unit_price", "endpoints": {"fal-ai/flux/dev": {"unit_quantity": 4}}}
    answer = api.http.post("/v1/models/pricing/estimate", json=asked, headers={"authorization": ANN})
    assert answer.json() == {"estimate_type": "unit_price", "total_cost": 0.1, "currency": "EUR"}
    asked["endpoints"] = {"fal-ai/flux/dev": {"unit_quantity": "many"}}
    assert api.http.post("/v1/models/pricing/estimate", json=asked, headers={"authorization": ANN}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://x.test"},
        {"host": "x.test"},
        {"x-forwarded-for": "203.0.113.9"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_an_open_server_lists_requests_to_programs_on_this_machine_alone(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    with serve(ApiNode(tmp_path)) as open_api:
        for path in (BY_ENDPOINT, "/v1/models/usage", "/v1/models/analytics"):
            assert open_api.http.get(path).status_code == 200
            assert open_api.http.get(path, headers=headers).status_code == 403


def test_how_requests_went_is_told_by_span_and_endpoint(api: Api) -> None:
    draw(api)
    draw(api)
    draw(api, BOB)
    draw(api, is_finished=False)
    api.http.post("/queue/fal-ai/flux/dev", json={}, headers={"authorization": ANN})
    (bucket,) = ask(api, "/v1/models/analytics", timeframe="month")["time_series"]
    assert bucket["bucket"].endswith("-01T00:00:00.000+00:00")
    assert bucket["results"] == [
        {
            "endpoint_id": "fal-ai/flux/dev",
            "request_count": 3,
            "success_count": 2,
            "user_error_count": 1,
            "error_count": 0,
        }
    ]
    times = "p50_duration,p90_prepare_duration"
    (bucket,) = ask(api, "/v1/models/analytics", expand=times, timeframe="day")["time_series"]
    (line,) = bucket["results"]
    assert set(line) == {"endpoint_id", "p50_duration", "p90_prepare_duration"}
    assert 0 <= line["p50_duration"] < 60
    assert ask(api, "/v1/models/analytics", endpoint_id="fal-ai/flux/schnell")["time_series"] == []
    assert ask(api, "/v1/models/analytics", start="2020-01-01", end="2020-01-02")["time_series"] == []
    status, text = refusal(api, "/v1/models/analytics", expand="p99_luck")
    assert status == 400
    assert "p90_duration" in text
    asked = {"timeframe": "rubbish"}
    answer = api.http.get("/v1/models/analytics", params=asked, headers={"authorization": ANN})
    assert answer.json()["error"]["param"] == "timeframe"
