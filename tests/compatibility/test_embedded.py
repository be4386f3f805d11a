"""One row a language with the model that everybody has, drawing what it is told."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.shapes.scorer import read
from tests.acceptance.judging import assert_holds
from tests.acceptance.serving import Server
from tests.acceptance.test_pictures import drawn
from tests.compatibility import driving
from tests.compatibility.rows import EMBEDDED, OPENAI_PICTURES, Row, params


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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("row", params((OPENAI_PICTURES,)))
def test_the_openai_client_has_pictures_edited_and_varied(row: Row, server: Server, tmp_path: Path) -> None:
    if (reason := driving.why_not(row)) is not None:
        pytest.skip(reason)
    given = drawn()
    mask = given.convert("RGBA")
    mask.paste((0, 0, 0, 0), (128, 0, 256, 256))  # transparent is to be drawn
    asked = {"picture": as_base64(given), "mask": as_base64(mask), "seed": 3}
    lines = driving.printed(server, row.setup)
    seen = driving.drive_python(row, lines, tmp_path, "drive_openai_pictures.py", asked)
    assert seen.escapes == set()
    (edited,) = fetched(seen, "images.edit")
    assert_holds(edited, ground="blue", colour="green")
    (inline,) = fetched(seen, "images.edit inline")
    assert inline.format == "JPEG"
    assert_holds(inline, ground="blue", colour="green")
    (filled,) = fetched(seen, "images.edit in a mask")
    kept = (0, 0, 128, 256)
    assert np.array_equal(np.asarray(filled.crop(kept)), np.asarray(given.crop(kept))), "opaque is kept"
    assert "yellow" in [thing.colour for thing in read(np.asarray(filled)).things]
    variations = fetched(seen, "images.create_variation")
    assert len(variations) == 2
    for each in variations:
        assert_holds(each, ground="blue", colour="red")
    assert {each.size for each in (edited, inline, filled, *variations)} == {(256, 256)}
    refusal = seen.value("no picture")
    assert (refusal["status"], refusal["param"]) == (400, "image")
    assert "JPEG, PNG or WebP" in refusal["says"]


def as_base64(picture: Image.Image) -> str:
    target = io.BytesIO()
    picture.save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


def fetched(seen: driving.Seen, operation: str) -> list[Image.Image]:
    """The pictures that an operation was told of, by address or inline."""

    def content(told: str) -> bytes:
        return httpx.get(told, timeout=60, verify=False).content if told[:4] == "http" else base64.b64decode(told)

    return [Image.open(io.BytesIO(content(told))) for told in seen.value(operation)["pictures"]]
