"""The history in a real browser; the test plays the worker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api_server import Api


def drawn(api: Api, prompt: str, headers: dict[str, str] | None = None) -> None:
    """A request that has ended well."""
    body = {"prompt": prompt, "seed": 11}
    assert api.http.post("/queue/fal-ai/flux/dev", json=body, headers=headers).status_code == 200
    job = api.node.claim()
    api.node.step(job, 2, 2)
    api.node.finish(job)


def test_requests_are_found_opened_and_replayed(api: Api, open_page: Any) -> None:
    drawn(api, "a violet hexagon", {"X-Fal-Tags": "shelf=top"})
    drawn(api, "nobody keeps this", {"X-Fal-Store-IO": "0"})
    page = open_page(f"{api.url}/history", api.url)
    page.get_by_text("Not kept, as its caller asked").wait_for()
    assert "nobody keeps this" not in page.inner_text("body")
    page.get_by_label("Label").fill("shelf=top")
    page.get_by_label("Label").press("Enter")
    page.get_by_text("Not kept, as its caller asked").wait_for(state="detached")
    page.get_by_role("button", name="a violet hexagon").press("Enter")
    page.get_by_text("step 2/2").wait_for()
    page.get_by_role("link", name="Replay with changes").click()
    page.wait_for_selector("#field-prompt")
    assert page.input_value("#field-prompt") == "a violet hexagon"
    assert page.input_value("#field-seed") == "11"


def test_requests_are_found_by_words_and_deleted_after_a_second_thought(api: Api, open_page: Any) -> None:
    drawn(api, "a violet hexagon")
    drawn(api, "a green square")
    page = open_page(f"{api.url}/history", api.url)
    page.get_by_label("Words").fill("viol")
    page.get_by_label("Words").press("Enter")
    page.get_by_text("a green square").wait_for(state="detached")
    page.get_by_role("button", name="a violet hexagon").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("button", name="Delete").press("Enter")
    page.get_by_role("button", name="Delete it").press("Enter")
    page.get_by_text("No such request.").wait_for()
    items = api.http.get("/v1/models/requests/by-endpoint", params={"expand": "payloads"}).json()["items"]
    assert [item["json_input"]["prompt"] for item in items] == ["a green square"]


def test_more_rows_come_by_the_button_and_the_server_filters(api: Api, open_page: Any) -> None:
    for number in range(26):
        api.submit(num_images=99, prompt=f"row {number}")
    api.submit(prompt="waits")
    page = open_page(f"{api.url}/history", api.url)
    page.locator(".request.queued").wait_for()
    assert page.locator(".request").count() == 25
    page.get_by_text("Show more").click()
    page.get_by_text("row 0").wait_for()
    assert page.locator(".request").count() == 27
    page.get_by_label("State").select_option("failed")
    page.locator(".request.queued").wait_for(state="detached")


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nothing_serious_stands_in_the_way_of_anybody(api: Api, open_page: Any, colours: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    drawn(api, "a grey square")
    page = open_page(f"{api.url}/history", api.url, color_scheme=colours, viewport={"width": 390, "height": 844})
    page.locator(".summary").first.click()
    page.get_by_label("Log").wait_for()
    found = axe.Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] != "minor"] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_an_answer_that_was_overtaken_is_not_shown(api: Api, open_page: Any) -> None:
    drawn(api, "a violet hexagon")
    drawn(api, "a green square")
    page = open_page(f"{api.url}/history", api.url)
    page.get_by_text("a green square").wait_for()
    held: list[Any] = []
    page.route(
        "**/by-endpoint?*", lambda route: held.append(route) if "q=" not in route.request.url else route.continue_()
    )
    page.get_by_role("button", name="Refresh").click()
    page.get_by_label("Words").fill("viol")
    page.get_by_label("Words").blur()
    page.get_by_text("a green square").wait_for(state="detached")
    with page.expect_response("**/by-endpoint?*"):
        held[0].continue_()
    assert page.get_by_text("a green square").count() == 0


def test_what_is_being_typed_stays_when_an_answer_comes(api: Api, open_page: Any) -> None:
    drawn(api, "a violet hexagon")
    drawn(api, "a green square")
    page = open_page(f"{api.url}/history", api.url)
    page.get_by_text("a green square").wait_for()
    drawn(api, "a red heart")
    held: list[Any] = []
    page.route("**/by-endpoint?*", lambda route: route.continue_() if held else held.append(route))
    page.get_by_role("button", name="Refresh").click()
    page.get_by_label("Words").fill("viol")
    held[0].continue_()
    page.get_by_text("a red heart").wait_for()
    assert page.get_by_label("Words").input_value() == "viol"
    page.get_by_label("Words").press("Enter")
    page.get_by_text("a green square").wait_for(state="detached")
    page.get_by_role("button", name="Reset").click()
    page.get_by_text("a green square").wait_for()
    assert page.get_by_label("Words").input_value() == ""
