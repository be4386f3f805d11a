"""What others built on fal, and what speaks OpenAI's call, set up as `fluxserve env` prints."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.compatibility import driving
from tests.compatibility.driving import Seen
from tests.compatibility.rows import AI_SDK, CURL, FAL_APPS, LITELLM, OPENAI, SERVER_PROXY, Row, params
from tests.conformance.scripted import DEV, Scripted


def need(row: Row) -> None:
    """Skip the test where the row's client is not installed."""
    if (reason := driving.why_not(row)) is not None:
        pytest.skip(reason)


def assert_served(server: Scripted, urls: list[str], kind: str = "image/jpeg") -> None:
    """Fail unless each address is a picture of this server."""
    for url in urls:
        assert url.startswith(server.url)
        assert httpx.get(url, timeout=60).headers["content-type"] == kind


@pytest.fixture(scope="module")
def fal_apps(shared_server: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What `fal.apps` and the toolkit did, all in one process: the package takes seconds to import."""
    need(FAL_APPS)
    lines = driving.printed(shared_server.server, FAL_APPS.setup)
    return driving.drive_python(FAL_APPS, lines, tmp_path_factory.mktemp("fal"), "drive_fal_apps.py")


@pytest.mark.case(12)
@pytest.mark.parametrize("row", params((FAL_APPS,)))
def test_012_fal_apps_and_its_file_toolkit(row: Row, fal_apps: Seen) -> None:
    fal_apps.assert_all(row.operations)
    assert fal_apps.escapes == set()


@pytest.mark.case(74)
@pytest.mark.parametrize("row", params((FAL_APPS,)))
def test_074_fal_apps_streams_lines(row: Row, fal_apps: Seen) -> None:
    # The program takes the last of the lines that begin with "data: "; without lines there would be none.
    fal_apps.assert_picture("stream")


@pytest.mark.parametrize("row", params((SERVER_PROXY,)))
def test_a_sites_own_proxy_keeps_the_key(row: Row, server: Scripted, tmp_path: Path) -> None:
    need(row)
    key = server.server.setup(row.setup)["FAL_KEY"]
    lines = driving.printed(server.server, row.setup)
    assert key not in lines, "the page must not hold it"
    # The program hands the page's configuration over with the whole address of its site.
    lines = lines.replace("fal.config(", "const pageConfig = (")
    seen = driving.drive_node(row, lines, tmp_path, "site.program.mjs", FAL_KEY=key)
    seen.assert_all(row.operations)
    assert seen.escapes == set()


@pytest.mark.parametrize("row", params((AI_SDK,)))
def test_the_ai_sdk_draws(row: Row, server: Scripted, tmp_path: Path) -> None:
    need(row)
    seen = driving.drive_node(row, driving.printed(server.server, row.setup), tmp_path, "ai-sdk.program.mjs")
    picture = seen.value("generateImage")
    assert (picture["width"], picture["height"], picture["mediaType"]) == (64, 64, "image/jpeg")
    assert picture["bytes"] > 0
    assert seen.value("provider options") == {"mediaType": "image/png"}
    error = seen.value("a wrong field")
    assert error["status"] == 422
    assert "image_size" in error["says"]
    assert seen.escapes == set()


@pytest.mark.parametrize("row", params((OPENAI,)))
def test_the_openai_client_draws(row: Row, server: Scripted, tmp_path: Path) -> None:
    need(row)
    lines = driving.printed(server.server, row.setup)
    seen = driving.drive_python(row, lines, tmp_path, "drive_openai.py")
    assert seen.value("models.list") == {"listed": True}
    urls = seen.value("images.generate")["pictures"]
    assert len(urls) == 2
    assert_served(server, urls, "image/png")
    assert seen.value("images.generate inline") == {"magic": "8950"}
    assert seen.value("a wrong field")["status"] == 400
    assert "WIDTHxHEIGHT" in seen.value("a wrong field")["says"]
    assert seen.escapes == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", params((LITELLM,)))
def test_litellm_draws(row: Row, server: Scripted, tmp_path: Path) -> None:
    need(row)
    lines = driving.printed(server.server, row.setup)
    seen = driving.drive_python(row, lines, tmp_path, "drive_litellm.py")
    for operation in row.operations:
        assert_served(server, seen.value(operation)["pictures"])
    assert seen.escapes == set()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("row", params((CURL,)))
def test_curl_draws(row: Row, server: Scripted) -> None:
    line = driving.printed(server.server, row.setup)
    done = subprocess.run(["sh", "-ec", line], capture_output=True, text=True, timeout=driving.TIMEOUT_S)
    answer = json.loads(done.stdout)
    assert_served(server, [image["url"] for image in answer["images"]])
    # The queue is one word away.
    queued = line.replace("/run/fal-ai/flux-pro", f"/queue/{DEV}")
    done = subprocess.run(["sh", "-ec", queued], capture_output=True, text=True, timeout=driving.TIMEOUT_S)
    assert json.loads(done.stdout)["status"] == "IN_QUEUE"
