"""LoRAs through the official clients: the embedded model learns a style, and a colour that it does not know."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from models.registry import EMBEDDED_LORAS
from tests.acceptance.judging import distance_to
from tests.acceptance.official import CLIENTS, Client
from tests.acceptance.serving import MODEL, Server
from tests.acceptance.test_first_picture import download
from tests.conformance.child import js_child, proxied_child

ENDPOINT = "fal-ai/flux-lora"
TEAL = (0, 128, 128)
BODY = {
    "prompt": "a red circle on a white background",
    "image_size": "square",
    "num_images": 3,
    "seed": 11,
    "output_format": "png",
}

pytestmark = pytest.mark.skipif(MODEL != "flux-shapes", reason="only the embedded model draws what it is told")


def ask(client: Client, server: Server, *loras: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return client(server, "run", ENDPOINT, loras=list(loras), **(BODY | changes)).result


def pictures(server: Server, result: dict[str, Any]) -> list[np.ndarray]:
    """Answers name this server as the caller reached it, which may be as fal."""
    paths = [urlsplit(image["url"]).path for image in result["images"]]
    return [np.asarray(download(server, server.url + path).convert("RGB")).astype(int) for path in paths]


def covered(server: Server, result: dict[str, Any]) -> float:
    """The share of its pictures that is not white ground."""
    return float(np.mean([picture.min(axis=2) < 128 for picture in pictures(server, result)]))


def assert_draws_as_the_named_one(server: Server, result: dict[str, Any]) -> None:
    """Either layout of the adapter, sent as a file, against the same adapter by its name."""
    body = BODY | {"loras": [{"path": "outline"}]}
    named = httpx.post(f"{server.url}/run/{ENDPOINT}", json=body, timeout=120).raise_for_status().json()
    for a, b in zip(pictures(server, result), pictures(server, named), strict=True):
        assert np.abs(a - b).max() <= 1


def test_an_adapter_by_name_brings_its_style(client: Client, server: Server) -> None:
    adapted, plain = ask(client, server, {"path": "outline"}), ask(client, server)
    assert 0 < covered(server, adapted) < 0.75 * covered(server, plain)


@pytest.mark.skipif(
    not (EMBEDDED_LORAS / "teal.safetensors").is_file(),
    reason="no adapter of a new colour is shipped: the decoder knows twelve colours (models/shapes/README.md)",
)
def test_an_adapter_by_name_brings_its_colour(client: Client, server: Server) -> None:
    prompt = "a teal star on a white background"
    adapted, plain = (
        np.median([distance_to(TEAL, Image.fromarray(p.astype(np.uint8))) for p in pictures(server, result)])
        for result in (ask(client, server, {"path": "teal"}, prompt=prompt), ask(client, server, prompt=prompt))
    )
    assert adapted < 50 < plain


def test_the_python_client_uploads_an_adapter(server: Server) -> None:
    child = proxied_child(server)
    try:
        result = child(
            """
            url = fal_client.upload_file(file)
            return fal_client.run(endpoint, {**body, "loras": [{"path": url}]})
            """,
            file=str(EMBEDDED_LORAS / "outline-kohya.safetensors"),
            endpoint=ENDPOINT,
            body=BODY,
        )
    finally:
        child.kill()
    assert_draws_as_the_named_one(server, result)


def test_the_javascript_client_uploads_an_adapter_by_itself(server: Server) -> None:
    if (reason := CLIENTS["node"].why_not()) is not None:
        pytest.skip(reason)
    child = js_child(server)
    try:
        result = child(
            """
            const { readFile } = await import("node:fs/promises")
            const path = new Blob([await readFile(file)])
            const { data } = await fal.run(endpoint, { input: { ...body, loras: [{ path }] } })
            return data
            """,
            file=str(EMBEDDED_LORAS / "outline.safetensors"),
            endpoint=ENDPOINT,
            body=BODY,
        )
    finally:
        child.kill()
    assert_draws_as_the_named_one(server, result)
