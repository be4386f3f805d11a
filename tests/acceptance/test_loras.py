"""LoRAs through the official clients: the embedded model learns a colour that it does not know."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from models.registry import EMBEDDED_LORAS
from tests.acceptance.judging import distance_to
from tests.acceptance.official import CLIENTS, Client
from tests.acceptance.serving import MODEL, Server
from tests.acceptance.test_first_picture import download
from tests.conformance.child import js_child, proxied_child

ENDPOINT = "fal-ai/flux-lora"
TEAL = (0, 128, 128)
BODY = {
    "prompt": "a teal star on a white background",
    "image_size": "square",
    "num_images": 3,
    "seed": 11,
    "output_format": "png",
}

pytestmark = [
    pytest.mark.skipif(MODEL != "flux-shapes", reason="only the embedded model draws what it is told"),
    pytest.mark.skipif(
        not (EMBEDDED_LORAS / "teal.safetensors").is_file(), reason="the adapters are still in training"
    ),
]


def ask(client: Client, server: Server, *loras: dict[str, Any]) -> dict[str, Any]:
    return client(server, "run", ENDPOINT, loras=list(loras), **BODY).result


def median_distance(server: Server, result: dict[str, Any]) -> float:
    """Of its pictures from teal; answers name this server as the caller reached it, which may be as fal."""
    paths = [urlsplit(image["url"]).path for image in result["images"]]
    return float(np.median([distance_to(TEAL, download(server, server.url + path)) for path in paths]))


def test_an_adapter_by_name_brings_its_colour(client: Client, server: Server) -> None:
    adapted, plain = ask(client, server, {"path": "teal"}), ask(client, server)
    assert median_distance(server, adapted) < 100 < median_distance(server, plain)


def test_the_python_client_uploads_an_adapter(server: Server) -> None:
    child = proxied_child(server)
    try:
        result = child(
            """
            url = fal_client.upload_file(file)
            return fal_client.run(endpoint, {**body, "loras": [{"path": url}]})
            """,
            file=str(EMBEDDED_LORAS / "teal-kohya.safetensors"),
            endpoint=ENDPOINT,
            body=BODY,
        )
    finally:
        child.kill()
    assert median_distance(server, result) < 100


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
            file=str(EMBEDDED_LORAS / "teal.safetensors"),
            endpoint=ENDPOINT,
            body=BODY,
        )
    finally:
        child.kill()
    assert median_distance(server, result) < 100
