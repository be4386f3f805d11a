"""SDXL's endpoints through a server of its own: Playground and Lightning draw, rework and repaint."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load
from models.registry import TINY_LIGHTNING, TINY_PLAYGROUND
from pipelines.engine.engine import Engine
from pipelines.families.sdxl.runner import SdxlRunner
from tests.acceptance.serving import Server
from tests.models.sdxl.folders import save_sdxl
from tests.pipelines.driving import drain, make_params, pictures, submit

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


# As in tests/pipelines/families/sdxl/test_parity.py: diffusers' Euler scheduler, drawn with in this process, too.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_steps_of_a_request_select_among_several_lightnings(tmp_path: Path) -> None:
    base, unet = save_sdxl(tmp_path / "sdxl"), "sdxl_lightning_{}step_unet.safetensors"
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    few, many = (str(tmp_path / unet.format(steps)) for steps in (2, 8))
    save_file(weights, few)
    save_file({name: 0.9 * tensor for name, tensor in weights.items()}, many)
    arguments = f"{base}+{few}", f"{base}+{many}"
    serving = Server(tmp_path / "node", ("--model", arguments[1]), model=arguments[0]).start()
    try:
        serving.wait_ready()
        for steps, drawn_by, other in ((2, *arguments), (8, *reversed(arguments)), (4, *arguments)):
            body = {"num_inference_steps": steps, "format": "png"}
            found = pixels(ask(serving, LIGHTNING, body)).astype(int)
            assert np.abs(found - drawn(drawn_by, steps)).max() <= 1, steps
            assert np.abs(found - drawn(other, steps)).max() > 20, "weights that draw alike would prove nothing"
        assert told(serving, {"num_inference_steps": 8}) == []
        (note,) = told(serving, {"num_inference_steps": "4"})
        assert note["level"] == "WARN"
        assert note["message"].startswith("drawn in 4 steps by sdxl+sdxl_lightning_2step_unet,")
        assert note["message"].endswith("sdxl_lightning_4step_unet.safetensors would match")
    finally:
        serving.close()


def drawn(argument: str, steps: int) -> np.ndarray:
    """What this checkpoint draws of the request that `ask` asks for."""
    spec = resolve(argument)
    runner = SdxlRunner(load(spec, CpuAccelerator()), CpuAccelerator())
    alone = Engine(lambda name: runner, CpuAccelerator())
    asked = make_params(model=spec.name, num_inference_steps=steps, guidance_scale=0.0, **SIZE)
    submit(alone, "a", asked)
    return pictures(drain(alone), "a")[0].astype(int)


def told(server: Server, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a request's log that say that a checkpoint was distilled for other steps."""
    given = {"prompt": "a red circle", "seed": 7, "image_size": SIZE} | body
    urls = httpx.post(f"{server.url}/queue/{LIGHTNING}", json=given).json()
    for _ in range(600):
        status = httpx.get(f"{urls['status_url']}?logs=1").json()
        if status["status"] == "COMPLETED":
            return [line for line in status["logs"] if "distilled" in line["message"]]
        time.sleep(0.1)
    raise AssertionError(status)


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
