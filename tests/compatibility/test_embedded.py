"""One row a language with the model that everybody has, drawing what it is told."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.acceptance.judging import assert_holds
from tests.acceptance.serving import Server
from tests.compatibility import driving
from tests.compatibility.rows import EMBEDDED, Row, params


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An open server with the embedded model."""
    server = Server(tmp_path_factory.mktemp("embedded")).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", params(EMBEDDED))
def test_the_picture_is_what_was_asked_for(row: Row, server: Server, tmp_path: Path) -> None:
    if (reason := driving.why_not(row)) is not None:
        pytest.skip(reason)
    lines = driving.printed(server, row.setup)
    asked = {
        "prompt": "a red circle on a blue background",
        "image_size": "square",
        "num_inference_steps": 8,
        "seed": 10,
    }
    result: dict[str, Any]
    if row.setup == "curl":
        shown = subprocess.run(["sh", "-ec", lines], capture_output=True, text=True, timeout=driving.TIMEOUT_S)
        result = json.loads(shown.stdout)
    elif row.setup == "python":
        result = driving.drive_python(row, lines, tmp_path, "drive_fal_client.py", asked).value("subscribe")
    else:
        result = driving.drive_node(row, lines, tmp_path, "client.program.mjs", asked).value("subscribe")
    (image,) = result["images"]
    # Its certificate is the business of other tests.
    picture = Image.open(io.BytesIO(httpx.get(image["url"], timeout=60, verify=False).content))
    assert picture.size == (image["width"], image["height"])
    assert_holds(picture, ground="blue", colour="red")
