"""The browser build of @fal-ai/client, bundled as sites do it, in headless Chromium, from a page of another origin."""

from __future__ import annotations

import json

import pytest

from tests.browser import IN_NPM, WHY_NOT
from tests.compatibility import driving
from tests.compatibility.driving import Seen
from tests.compatibility.rows import BROWSER, Row, params
from tests.conformance.recording import Recorded
from tests.conformance.scripted import Scripted

pytestmark = pytest.mark.skipif(not IN_NPM, reason=WHY_NOT)


@pytest.fixture(scope="module")
def visit(shared_server: Scripted) -> tuple[Seen, list[Recorded]]:
    """What the page did, and every request that reached the server meanwhile."""
    if (reason := driving.why_not(BROWSER)) is not None:
        pytest.skip(reason)
    lines = driving.printed(shared_server.server, BROWSER.setup)
    record = shared_server.record()
    seen = driving.drive_browser(BROWSER, lines.replace('"@fal-ai/client"', json.dumps(BROWSER.package)))
    return seen, record.all()


@pytest.mark.case(9)
@pytest.mark.parametrize("row", params((BROWSER,)))
def test_009_a_page_of_another_origin(row: Row, visit: tuple[Seen, list[Recorded]]) -> None:
    seen, requests = visit
    assert len(seen.value("run")["requestId"]) >= 32, "the header must be exposed"
    seen.assert_all(["run", "subscribe", "subscribe by stream", "stream", "upload"])
    error = seen.value("a wrong field")
    assert (error["name"], error["status"], error["field"]) == ("ValidationError", 422, "num_inference_steps")
    assert len(error["requestId"]) >= 32

    preflights = [request for request in requests if request.method == "OPTIONS"]
    assert preflights, "the page must be of another origin"
    assert all(request.status in (200, 204) and "authorization" not in request.headers for request in preflights)
    # The one limit: the address of a realtime socket cannot be moved. The browser resolved no name.
    assert "error" in seen.answers["realtime"]
    assert seen.escapes == {"wss://fal.run"}


@pytest.mark.case(95)
@pytest.mark.parametrize("row", params((BROWSER,)))
def test_095_a_page_of_another_origin_shows_the_picture(row: Row, visit: tuple[Seen, list[Recorded]]) -> None:
    shown = visit[0].value("show a result")
    assert shown["declared"] == {"type": "image/jpeg", "width": 64, "height": 64}
    assert (shown["type"], shown["width"], shown["height"]) == ("image/jpeg", 64, 64)
