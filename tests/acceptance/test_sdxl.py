"""SDXL's endpoints through a server of its own: Playground and Lightning draw, rework and repaint."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.registry import TINY_LIGHTNING, TINY_PLAYGROUND
from tests.acceptance.serving import Server
from tests.models.sdxl.folders import save_sdxl

SIZE = {"width": 64, "height": 48}
LIGHTNING, PLAYGROUND = "fal-ai/fast-lightning-sdxl", "fal-ai/playground-v25"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sdxls")
    lightning = save_sdxl(folder / "sdxl-lightning", TINY_LIGHTNING)
    playground = save_sdxl(folder / "playground", TINY_PLAYGROUND)
    serving = Server(tmp_path_factory.mktemp("node"), ("--model", str(playground)), model=str(lightning)).start()
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.close()


def test_every_endpoint_draws(server: Server) -> None:
    picture, mask = data_uri(Image.new("RGB", (64, 48), "red")), data_uri(box(64, 48))
    asked: list[tuple[str, dict[str, Any]]] = [
        (LIGHTNING, {"num_inference_steps": "1", "num_images": 2, "format": "png"}),
        (LIGHTNING, {"num_inference_steps": 8, "format": "png"}),
        (f"{LIGHTNING}/image-to-image", {"image_url": picture, "strength": 0.5}),
        (f"{LIGHTNING}/inpainting", {"image_url": picture, "mask_url": mask, "format": "png"}),
        (PLAYGROUND, {"num_inference_steps": 3, "format": "png"}),
        (PLAYGROUND, {"num_inference_steps": 3, "negative_prompt": "blue", "format": "png"}),
        (
            f"{PLAYGROUND}/image-to-image",
            {"image_url": picture, "num_inference_steps": 4, "preserve_aspect_ratio": True},
        ),
        (f"{PLAYGROUND}/inpainting", {"image_url": picture, "mask_url": mask, "num_inference_steps": 3}),
    ]
    results = [ask(server, endpoint, body) for endpoint, body in asked]
    sizes = [(image["width"], image["height"]) for result in results for image in result["images"]]
    assert sizes == [(64, 48)] * 9
    assert [result["images"][0]["content_type"] for result in results[1:3]] == ["image/png", "image/jpeg"]
    drawn = [pixels(result) for result in results]
    assert all(np.std(each) > 5 for each in drawn)
    assert not np.array_equal(drawn[4], drawn[5]), "the negative prompt counts"
    outside = np.asarray(box(64, 48)) == 0
    assert (drawn[3][outside] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"num_inference_steps": "3"}, "num_inference_steps"),
        ({"embeddings": [{"path": "https://example.com/a.safetensors"}]}, "embeddings"),
        ({"num_images": 9}, "num_images"),
    ],
)
def test_what_it_cannot_do_is_said(server: Server, body: dict[str, Any], field: str) -> None:
    answer = httpx.post(f"{server.url}/run/{LIGHTNING}", json={"prompt": "a"} | body)
    assert (answer.status_code, answer.json()["detail"][0]["loc"][:2]) == (422, ["body", field])


def test_the_list_says_which_checkpoint_answers(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models?limit=200").json()["models"]
    rows = {entry["endpoint_id"]: entry["metadata"] for entry in listed}
    assert (rows[LIGHTNING]["served_by"], rows[LIGHTNING]["is_substitute"]) == ("sdxl-lightning", False)
    assert rows[f"{PLAYGROUND}/inpainting"]["served_by"] == "playground"
    assert rows["fal-ai/flux/dev"]["status"] == "unavailable"


def ask(server: Server, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    given = {"prompt": "a red circle", "seed": 7, "image_size": SIZE, "sync_mode": True} | body
    answer = httpx.post(f"{server.url}/run/{endpoint}", json=given, timeout=60)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def pixels(result: dict[str, Any]) -> np.ndarray:
    content = base64.b64decode(result["images"][0]["url"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def box(width: int, height: int) -> Image.Image:
    image = Image.new("L", (width, height))
    image.paste(255, (16, 8, 40, 32))
    return image


def data_uri(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
