"""FLUX.2 [dev], its Turbo and FLUX.3 [klein] at their endpoints, through a server of its own with random weights."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.acceptance.serving import Server
from tests.models.flux2.folders import save_dev
from tests.models.flux3.folders import save_flux3

DEV, FLUX3 = "fal-ai/flux-2", "blackforestlabs/flux-3/klein"
SIZE = {"width": 64, "height": 48}
WIDTH = 32
"""Of the tiny FLUX.2's tokens."""
LORA = "flux.2-turbo-lora"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("checkpoints")
    dev, flux3 = save_dev(folder / "dev"), save_flux3(folder / "flux3")
    base = save_flux3(folder / "flux3-base", is_base=True)
    for seed, name in enumerate(("style", LORA)):
        save_lora(folder / f"{name}.safetensors", seed)
    others = (f"{dev}+{LORA}.safetensors", str(flux3), str(base))
    flags = [word for name in others for word in ("--model", name)]
    flags += ["--model-dir", str(folder), "--adapter-dir", str(folder)]
    serving = Server(tmp_path_factory.mktemp("node"), tuple(flags), model=str(dev)).start()
    try:
        serving.wait_ready()
        yield serving
    finally:
        serving.close()


def save_lora(file: Path, seed: int) -> None:
    """Over the last linear of every single block, in diffusers' layout."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"lora_A": (2, 4 * WIDTH), "lora_B": (WIDTH, 2)}
    layers = [f"transformer.single_transformer_blocks.{index}.attn.to_out" for index in range(2)]
    named = {f"{layer}.{part}.weight": shape for layer in layers for part, shape in shapes.items()}
    save_file({key: torch.randn(shape, generator=generator) for key, shape in named.items()}, file)


def test_flux2_dev_draws_edits_and_takes_loras(server: Server) -> None:
    drawn = [
        drawn_by(server, endpoint, body)
        for endpoint, body in [
            (DEV, {}),
            (DEV, {"guidance_scale": 9.0}),
            (f"{DEV}/edit", {"image_urls": [picture("red")]}),
            (f"{DEV}/edit", {"image_urls": [picture("red"), picture("blue")]}),
            (f"{DEV}/lora", {"loras": [{"path": "style"}]}),
            (f"{DEV}/lora/edit", {"loras": [{"path": "style"}], "image_urls": [picture("red")]}),
        ]
    ]
    assert_different(drawn)
    assert np.array_equal(drawn[0], drawn_by(server, f"{DEV}/lora", {"loras": []}))


def test_turbo_draws_and_edits_by_weights_of_its_own(server: Server) -> None:
    plain, adapted = (
        drawn_by(server, endpoint, {"num_inference_steps": 8, **more})
        for endpoint, more in ((DEV, {}), (f"{DEV}/lora", {"loras": [{"path": LORA}]}))
    )
    turbo = drawn_by(server, f"{DEV}/turbo", {})
    edited = drawn_by(server, f"{DEV}/turbo/edit", {"image_urls": [picture("red")]})
    assert_different([plain, adapted, turbo, edited])
    assert np.array_equal(turbo, drawn_by(server, f"{DEV}/flash", {}))
    assert np.array_equal(edited, drawn_by(server, f"{DEV}/flash/edit", {"image_urls": [picture("red")]}))


@pytest.mark.parametrize("kind", ["", "/base"])
def test_flux3_draws_and_edits(server: Server, kind: str) -> None:
    drawn = [
        drawn_by(server, f"{FLUX3}{kind}/{task}", {"enable_prompt_expansion": False, **body})
        for task, body in [
            ("text-to-image", {}),
            ("text-to-image", {"prompt": "a blue square"}),
            ("edit", {"image_urls": [picture("red")]}),
            ("edit", {"image_urls": [picture("red"), picture("blue")]}),
        ]
    ]
    assert_different(drawn)


def test_a_base_of_flux3_is_led_away_from_a_second_prompt(server: Server) -> None:
    bodies = ({}, {"negative_prompt": "blue"}, {"guidance_scale": 8})
    endpoint = f"{FLUX3}/base/text-to-image"
    assert_different([drawn_by(server, endpoint, {"enable_prompt_expansion": False, **body}) for body in bodies])


def test_the_list_says_which_checkpoint_answers(server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models?limit=200").json()["models"]
    rows = {entry["endpoint_id"]: entry["metadata"] for entry in listed}
    expected = {
        **{f"{DEV}{task}": "dev" for task in ("", "/edit", "/lora", "/lora/edit")},
        **{f"{DEV}/{kind}{edit}": f"dev+{LORA}" for kind in ("turbo", "flash") for edit in ("", "/edit")},
        **{f"{FLUX3}/{task}": "flux3" for task in ("text-to-image", "edit")},
        **{f"{FLUX3}/base/{task}": "flux3-base" for task in ("text-to-image", "edit")},
    }
    assert {name: rows[name]["served_by"] for name in expected} == expected


def drawn_by(server: Server, endpoint: str, body: dict[str, Any]) -> np.ndarray:
    """The pixels of one answer, whose seed, size and format are as asked."""
    few = {} if "turbo" in endpoint or "flash" in endpoint else {"num_inference_steps": 4}
    asked = {"prompt": "a red circle", "seed": 7, "image_size": SIZE, "enable_safety_checker": False} | few | body
    answer = httpx.post(f"{server.url}/run/{endpoint}", json=asked | {"sync_mode": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    result = answer.json()
    (image,) = result["images"]
    assert (result["seed"], result["has_nsfw_concepts"]) == (7, [False])
    assert (image["width"], image["height"], image["content_type"]) == (64, 48, "image/png")
    pixels = Image.open(io.BytesIO(base64.b64decode(image["url"].partition(",")[2])))
    return np.asarray(pixels.convert("RGB"))


def picture(colour: str) -> str:
    held = io.BytesIO()
    Image.new("RGB", (80, 96), colour).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def assert_different(drawn: list[np.ndarray]) -> None:
    """No flat picture, and no two alike."""
    assert all(np.std(each) > 5 for each in drawn)
    assert len({each.tobytes() for each in drawn}) == len(drawn)
