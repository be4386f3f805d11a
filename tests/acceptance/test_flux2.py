"""FLUX.2 [klein] through the official Python client: it draws and edits by one checkpoint, and by its base."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models.shapes.scorer import read
from tests.acceptance.serving import Server
from tests.acceptance.test_first_picture import download
from tests.acceptance.test_pictures import told
from tests.conformance.child import proxied_child
from tests.models.flux2.folders import save_klein

APP = "fal-ai/flux-2/klein/4b"
SIZE = {"width": 64, "height": 48}


@pytest.fixture(scope="module")
def kleins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a small FLUX.2 [klein] and its base."""
    folder = tmp_path_factory.mktemp("kleins")
    distilled, base = save_klein(folder / "klein"), save_klein(folder / "klein-base", is_base=True)
    server = Server(tmp_path_factory.mktemp("node"), ("--model", str(base)), model=str(distilled)).start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.close()


def test_it_draws_edits_and_is_guided(kleins: Server) -> None:
    circle = io.BytesIO()
    Image.new("RGB", (80, 96), "red").save(circle, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(circle.getvalue()).decode()
    asked: list[tuple[str, dict[str, Any]]] = [
        (APP, {"image_size": SIZE, "num_images": 2}),
        (f"{APP}/edit", {"image_urls": [picture]}),
        (f"{APP}/edit", {"image_urls": [picture, picture], "image_size": SIZE, "output_format": "webp"}),
        (f"{APP}/base", {"image_size": SIZE, "num_inference_steps": 4}),
        (f"{APP}/base", {"image_size": SIZE, "num_inference_steps": 4, "negative_prompt": "blue"}),
        (f"{APP}/base/edit", {"image_urls": [picture], "image_size": SIZE, "num_inference_steps": 4}),
    ]
    child = proxied_child(kleins)
    try:
        results = [ask(child, endpoint, body) for endpoint, body in asked]
    finally:
        child.kill()
    assert [result["seed"] for result in results] == [7] * len(asked)
    sizes = [(image["width"], image["height"]) for result in results for image in result["images"]]
    assert sizes == [(64, 48)] * 2 + [(80, 96)] + [(64, 48)] * 4
    assert results[2]["images"][0]["content_type"] == "image/webp"
    assert {image["content_type"] for result in results[3:] for image in result["images"]} == {"image/png"}
    drawn = [pixels(kleins, result) for result in results]
    assert all(np.std(each) > 5 for each in drawn)
    assert not np.array_equal(drawn[3], drawn[4]), "the negative prompt counts"
    assert not np.array_equal(drawn[3], drawn[5]), "the picture counts"


def ask(child: Any, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    given = {"prompt": "a red circle", "seed": 7, "enable_safety_checker": False} | body
    result: dict[str, Any] = child("return fal_client.subscribe(endpoint, body)", endpoint=endpoint, body=given)
    return result


def pixels(server: Server, result: dict[str, Any]) -> np.ndarray:
    path = urlsplit(result["images"][0]["url"]).path
    return np.asarray(download(server, server.url + path).convert("RGB"))


def test_the_list_says_which_checkpoint_answers(kleins: Server) -> None:
    listed = httpx.get(f"{kleins.url}/v1/models?limit=200").json()["models"]
    rows = {entry["endpoint_id"]: entry["metadata"] for entry in listed}
    assert (rows[APP]["served_by"], rows[APP]["is_substitute"]) == ("klein", False)
    assert rows[f"{APP}/base/edit"]["served_by"] == "klein-base"
    assert rows["fal-ai/flux-2/klein/9b"]["is_substitute"]
    assert rows["fal-ai/flux/dev"]["status"] == "unavailable"


def test_a_lora_changes_what_it_draws(kleins: Server, tmp_path: Path) -> None:
    width = 32
    layer = "transformer.single_transformer_blocks.0.attn.to_out"
    file = tmp_path / "mine.safetensors"
    up = torch.randn(width, 2, generator=torch.Generator().manual_seed(1))
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 4 * width), f"{layer}.lora_B.weight": up}, file)
    child = proxied_child(kleins)
    try:
        body = {"prompt": "a red circle", "seed": 7, "image_size": SIZE}
        plain, adapted = (
            child(
                """
                loras = [{"path": fal_client.upload_file(file)}] if file else []
                return fal_client.run(endpoint, {**body, "loras": loras})
                """,
                endpoint=f"{APP}/lora",
                body=body,
                file=given,
            )
            for given in ("", str(file))
        )
    finally:
        child.kill()
    assert not np.array_equal(pixels(kleins, plain), pixels(kleins, adapted))


def test_what_it_cannot_do_is_said(kleins: Server) -> None:
    few = httpx.post(f"{kleins.url}/run/{APP}", json={"prompt": "a", "num_inference_steps": 2})
    assert (few.status_code, few.json()["detail"][0]["loc"]) == (422, ["body", "num_inference_steps"])


@pytest.mark.parametrize("name", ["python", "node"])
def test_the_embedded_one_draws_and_edits(server: Server, name: str, tmp_path: Path) -> None:
    """No flag and no download: the picture that one call draws is what the next one edits."""
    asked = {"image_size": {"width": 512, "height": 512}, "seed": 3, "output_format": "png"}
    (event,) = told(server, name, [[APP, asked | {"prompt": "a red circle on a blue background"}]]).events
    drawn = fetched(server, event["result"])
    seen = read(np.asarray(drawn.convert("RGB")))
    assert seen.ground == "blue"
    assert [(thing.shape, thing.colour) for thing in seen.things] == [("circle", "red")]
    drawn.save(tmp_path / "drawn.png")
    data = "data:image/png;base64," + base64.b64encode((tmp_path / "drawn.png").read_bytes()).decode()
    edit = asked | {"prompt": "turn the background yellow", "image_urls": [data]}
    (event,) = told(server, name, [[f"{APP}/edit", edit]]).events
    assert read(np.asarray(fetched(server, event["result"]).convert("RGB"))).ground == "yellow"


def fetched(server: Server, result: dict[str, Any]) -> Image.Image:
    (image,) = result["images"]
    return download(server, server.url + urlsplit(image["url"]).path)
