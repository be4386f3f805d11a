"""The examples for sites and pages: the Next.js route without Next.js, the page in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.official import CLIENTS
from tests.acceptance.serving import Server, clean_environment
from tests.browser import IN_NPM, WHY_NOT, unpacking
from tests.compatibility.driving import JS
from tests.examples.conftest import EXAMPLES, KEY

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(CLIENTS["node"].why_not() is not None, reason=str(CLIENTS["node"].why_not())),
    pytest.mark.skipif(not (JS / "node_modules").is_dir(), reason="the JavaScript clients are not installed: make dev"),
]


def told(program: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """The JSON that a program of this folder prints last."""
    command = ["node", str(HERE / program), json.dumps(arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env=clean_environment() | environment, cwd=HERE
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_next_route_draws_with_the_sites_key_and_lets_nothing_else_through(server: Server, tmp_path: Path) -> None:
    named = (EXAMPLES / "next" / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=", named, re.MULTILINE)) == {"FAL_KEY", "NEXT_PUBLIC_FLUXSERVE_URL"}
    answer = told(
        "site.mjs", str(JS), str(EXAMPLES / "next"), str(tmp_path), FAL_KEY=KEY, NEXT_PUBLIC_FLUXSERVE_URL=server.url
    )
    assert answer["last"] == "COMPLETED"
    assert httpx.get(answer["url"]).headers["content-type"] == "image/jpeg"
    fals_host, another_endpoint = answer["elsewhere"]
    assert fals_host >= 400
    assert another_endpoint >= 400


@pytest.mark.skipif(not IN_NPM, reason=WHY_NOT)
def test_the_page_shows_the_picture_while_it_is_drawn(server: Server) -> None:
    page = str(EXAMPLES / "browser" / "previews.html")
    answer = told("page.mjs", str(JS), page, server.url, KEY, **unpacking())
    unfinished = [entry for entry in answer["seen"] if entry["kind"] == "data:" and entry["blurred"]]
    assert len({entry["said"] for entry in unfinished}) > 1
    assert re.fullmatch(r"Done, seed \d+", answer["seen"][-1]["said"])
    assert answer["width"] == 512
    assert "cannot take this prompt" in answer["refusal"]
