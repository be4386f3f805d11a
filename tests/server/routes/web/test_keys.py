"""The page of keys in a real browser: for an operator's key, through the public API alone."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.api_node import ApiNode
from tests.server.api_server import Api, serve


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with serve(ApiNode(tmp_path, api_keys=("op:secret",))) as served:
        yield served


def opened(api: Api, open_page: Any, key: str = "op:secret", **settings: Any) -> Any:
    page = open_page(f"{api.url}/keys", api.url, **settings)
    page.fill("#key", key)
    page.get_by_role("button", name="Use it").click()
    return page


def submit(api: Api, key: str) -> int:
    headers = {"authorization": f"Key {key}"}
    return api.http.post("/queue/fal-ai/flux/dev", json={"prompt": "a fox"}, headers=headers).status_code


def test_a_key_is_made_shown_once_used_changed_and_revoked(api: Api, open_page: Any, tmp_path: Path) -> None:
    page = opened(api, open_page)
    page.get_by_role("button", name="New key").click()
    page.get_by_role("button", name="Make it").click()
    page.locator(".wrong .error").wait_for()  # a name is needed, and it says so there
    page.fill("#new-alias", "the app")
    page.fill("#new-budgets", "lots")
    page.get_by_role("button", name="Make it").click()
    page.get_by_text("'lots' is no budget").wait_for()
    page.fill("#new-budgets", "9mp/day")
    page.get_by_label("files: Send pictures").uncheck()
    page.get_by_role("button", name="Make it").click()
    secret = page.inner_text("dialog pre")
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("window.copied") == secret
    page.get_by_role("button", name="Done").click()
    page.locator("dialog").wait_for(state="detached")
    assert secret not in page.content()
    assert submit(api, secret) == 200
    api.node.finish(api.node.claim())
    page.reload()
    row = page.locator("li.request", has_text="the app")
    row.get_by_role("button").first.click()
    page.get_by_text("1 of 9 megapixels used").wait_for()
    assert "run, queue" in row.inner_text()
    assert "GPU seconds\n1.25" in row.inner_text()
    row.get_by_label("Submits a minute").fill("0")
    row.get_by_role("button", name="Save").click()
    row.get_by_text("greater than or equal to 1").wait_for()
    row.get_by_label("Submits a minute").fill("1")
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        row.get_by_role("button", name="Save").click()
    assert [submit(api, secret), submit(api, secret)] == [200, 429]
    with page.expect_download() as loading:
        page.get_by_role("button", name="Export CSV").click()
    with Path(loading.value.path()).open(newline="") as table:
        (line,) = csv.DictReader(table)
    assert (line["requests"], line["megapixels"]) == ("1", "1")
    row.get_by_role("button", name="Revoke").click()
    row.get_by_role("button", name="Revoke it").press("Enter")
    row.wait_for(state="detached")
    assert submit(api, secret) == 401
    page.get_by_label("Revoked ones, too").check()
    row.get_by_text("revoked 20").wait_for()


def test_who_is_no_operator_is_told_so_and_an_open_server_how_to_begin(
    api: Api, open_page: Any, tmp_path: Path
) -> None:
    made = api.http.post("/v1/keys", json={"alias": "app"}, headers={"authorization": "Key op:secret"}).json()
    page = opened(api, open_page, made["key"])
    page.get_by_text("it lacks the scope admin").wait_for()
    assert page.get_by_role("button", name="New key").count() == 0
    with serve(ApiNode(tmp_path / "open")) as unlocked:
        page = open_page(f"{unlocked.url}/keys", unlocked.url)
        page.get_by_text("fluxserve keys new --scope admin").wait_for()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nothing_serious_stands_in_the_way_of_anybody(api: Api, open_page: Any, colours: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    api.http.post("/v1/keys", json={"alias": "app"}, headers={"authorization": "Key op:secret"})
    page = opened(api, open_page, color_scheme=colours, viewport={"width": 390, "height": 844})
    page.locator(".summary").first.click()
    page.get_by_label("Name").wait_for()
    serious(page, axe)
    page.get_by_role("button", name="New key").click()
    serious(page, axe)


def serious(page: Any, axe: Any) -> None:
    """Nothing of it is there, and nothing stands out of a phone's width."""
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["target"]) for each in found if each["impact"] != "minor"] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
