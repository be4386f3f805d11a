"""How soon the pages for people can be used, in a real Chromium over a real server.

    PYTHONPATH=.venv/browser .venv/bin/python -m benchmarks.pages [--repeat 5] [--size 512] [--steps 4]

`make test-browser` fetches the driver; Chromium is the system's. Every round is a fresh profile. Milliseconds from the
start of the navigation until the page's fields or rows are there, and from opening the playground until its first
unfinished and its first whole picture, drawn by the embedded model as soon as the form is there. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from server.bench.stamp import stamp
from server.routes.web.pages import STATIC
from tests.acceptance.serving import Server

READY = {"": "#field-prompt", "history": ".empty, .request"}
"""What is there when a page can be used."""


def opened(browser: Any, address: str, selector: str) -> tuple[Any, float]:
    """The page, and milliseconds until it can be used."""
    page = browser.new_context().new_page()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(selector, timeout=60_000)
    return page, page.evaluate("performance.now()")


def draw(browser: Any, url: str, values: dict[str, Any]) -> dict[str, float]:
    """Milliseconds from opening the playground to its pictures."""
    page, ready = opened(browser, f"{url}/#{json.dumps(values)}", "#field-prompt")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.wait_for_selector("img.preview, .run.done img", timeout=120_000)
    preview = page.evaluate("performance.now()")
    page.wait_for_selector(".run.done img", timeout=120_000)
    page.wait_for_function("document.querySelector('.run.done img').complete")
    return {"form": ready, "first_preview": preview, "first_picture": page.evaluate("performance.now()")}


def measure(browser: Any, url: str, repeat: int, values: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds."""
    figures: dict[str, list[float]] = {}
    for _ in range(repeat):
        for path, selector in READY.items():
            page, ready = opened(browser, f"{url}/{path}", selector)
            figures.setdefault(f"{path or 'playground'}_ready", []).append(ready)
            page.context.close()
        for name, taken in draw(browser, url, values).items():
            figures.setdefault(f"drawing_{name}", []).append(taken)
    return {f"{name}_ms": round(statistics.median(each)) for name, each in figures.items()}


def compressed_bytes() -> int:
    """All that a browser may load, as it is sent."""
    files = (path for path in STATIC.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg"))
    return sum(len(gzip.compress(path.read_bytes(), 6)) for path in files)


def main() -> None:
    """Serve, open, draw, print."""
    driver = importlib.import_module("playwright.sync_api")  # of tests/browser.txt, not of our environment
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    asked = parser.parse_args()
    sides = {"width": asked.size, "height": asked.size}
    values = {"prompt": "a red circle", "image_size": sides, "num_inference_steps": asked.steps}
    with tempfile.TemporaryDirectory() as folder, driver.sync_playwright() as playwright:
        server = Server(Path(folder)).start()
        try:
            server.wait_ready()
            time.sleep(1.0)  # the encoder starts beside it
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            figures = measure(browser, server.url, asked.repeat, values)
        finally:
            server.close()
    print(json.dumps({**figures, "compressed_bytes": compressed_bytes(), "drawn": values, **stamp()}))


if __name__ == "__main__":
    main()
