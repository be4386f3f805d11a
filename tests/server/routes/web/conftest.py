"""A real Chromium, and a real server with the embedded model. Without a browser these tests are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.serving import Server
from tests.browser import chromium_path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    driver = pytest.importorskip("playwright.sync_api", reason="no browser driver: `make test` installs it")
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium: npm carries it for Linux on x86-64; elsewhere install it (apt-get install chromium)")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server, ready; not even started where there is no browser."""
    server = Server(tmp_path_factory.mktemp("node")).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Any]:
    """Opens an address in a fresh profile; fails the test for any error in the page, and any call to elsewhere."""
    contexts: list[Any] = []
    faults: list[str] = []

    def opened(address: str, own: str, **settings: Any) -> Any:
        context = chromium.new_context(**settings)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"error in the page: {error}"))
        page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
        page.on("request", lambda call: call.url.startswith((own, "data:", "blob:")) or faults.append(call.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
