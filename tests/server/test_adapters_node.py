"""LoRAs over HTTP: a real node, a real worker with the embedded model, files good and hostile."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from PIL import Image

from models.adapters.reading import LowRank
from models.registry import REGISTRY
from server.app import create_app
from server.node import Node
from server.settings import Settings
from tests.pipelines.adapters.loras import random_lora, save_diffusers, save_kohya
from tests.server.api_server import eventually, listening
from tests.server.files.lora_files import lora_bytes

ENDPOINT = "/run/fal-ai/flux-lora"
TOLERANCE = 1


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three LoRAs of flux-shapes, the second in kohya's layout, and hostile ones."""
    folder = tmp_path_factory.mktemp("loras")
    transformer = FluxTransformer2DModel.from_pretrained(Path(REGISTRY["flux-shapes"].source) / "transformer")
    parts = [random_lora(transformer, 4, seed, 0.2) for seed in range(3)]
    for seed in (0, 2):
        save_diffusers(parts[seed], folder / f"{seed}.safetensors")
    save_kohya(parts[1], folder / "1.safetensors", alpha=2.0)
    huge = {name: LowRank(torch.full_like(p.down, 1e38), torch.full_like(p.up, 1e38)) for name, p in parts[0].items()}
    save_diffusers(huge, folder / "huge.safetensors")
    next(iter(parts[0].values())).down[0, 0] = torch.nan
    save_diffusers(parts[0], folder / "nan.safetensors")
    (folder / "pickle.safetensors").write_bytes(b"\x80\x04\x95 a pickle that runs things")
    (folder / "wide.safetensors").write_bytes(lora_bytes(width=3072))
    sdxl = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    (folder / "sdxl.safetensors").write_bytes(lora_bytes(layer=sdxl))
    (folder / "short.safetensors").write_bytes(lora_bytes()[:-20])
    return folder


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, loras: Path) -> Node:
    return Node.from_settings(Settings(data_dir=tmp_path_factory.mktemp("data"), device="cpu", adapter_dir=loras))


@pytest.fixture(scope="module")
def http(node: Node) -> Iterator[httpx.Client]:
    with listening(create_app(node)) as url, httpx.Client(base_url=url, timeout=60) as client:
        eventually(lambda: client.get("/readyz").status_code == 200, within_s=60)
        yield client


def ask(http: httpx.Client, *used: dict[str, Any], endpoint: str = ENDPOINT, **more: Any) -> httpx.Response:
    small = {"image_size": {"width": 128, "height": 128}, "num_inference_steps": 3, "output_format": "png"}
    return http.post(endpoint, json={"prompt": "a red star", "seed": 5, "loras": list(used)} | small | more)


def drawn(http: httpx.Client, *used: dict[str, Any], **more: Any) -> np.ndarray:
    answer = ask(http, *used, **more)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(BytesIO(http.get(answer.json()["images"][0]["url"]).content)))


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_an_adapter_changes_the_picture_by_its_scale(http: httpx.Client) -> None:
    plain, half, full = (drawn(http, {"path": "0", "scale": scale}) for scale in (0, 0.5, 1))
    assert distance(plain, drawn(http)) <= TOLERANCE
    assert distance(plain, half) > 10
    assert np.abs(plain - full.astype(float)).mean() > np.abs(plain - half.astype(float)).mean()


def test_an_upload_is_an_adapter(http: httpx.Client, node: Node, loras: Path) -> None:
    content = (loras / "2.safetensors").read_bytes()
    key = node.objects.put(content, "application/octet-stream", "bin", ttl_s=600)
    assert distance(drawn(http, {"path": f"{http.base_url}/files/{key}"}), drawn(http, {"path": "2.safetensors"})) == 0


@pytest.mark.parametrize("endpoint", ["fal-ai/flux-lora/image-to-image", "fal-ai/flux-general/image-to-image"])
def test_an_adapter_takes_part_in_what_starts_from_a_picture(http: httpx.Client, endpoint: str) -> None:
    file = BytesIO()
    Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(file, "PNG")
    start = {"image_url": f"data:image/png;base64,{b64encode(file.getvalue()).decode()}", "strength": 0.9}
    sized = {"num_inference_steps": 10, "endpoint": f"/run/{endpoint}"}
    plain, adapted = (drawn(http, *used, **start, **sized) for used in ((), ({"path": "0"},)))
    assert plain.shape == (128, 128, 3)
    assert distance(plain, adapted) > 10


def test_many_requests_with_different_adapters_draw_what_each_draws_alone(http: httpx.Client) -> None:
    mixes: list[list[dict[str, Any]]] = [
        [],
        [{"path": "0", "scale": 0.7}],
        [{"path": "1"}],
        [{"path": "2"}],
        [{"path": "0", "scale": 0.4}, {"path": "1", "scale": 0.6}],
        [],
    ]
    alone = [drawn(http, *mix) for mix in mixes]
    with ThreadPoolExecutor(len(mixes)) as threads:
        together = list(threads.map(lambda mix: drawn(http, *mix), mixes))
    assert max(distance(a, b) for a, b in zip(alone, together, strict=True)) <= TOLERANCE
    assert min(distance(alone[0], other) for other in alone[1:5]) > 10


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pickle", "pickled weights"),
        ("nan", "not numbers"),
        ("wide", "take 3072 values and give 3072, where this model's layer takes 128 and gives 128"),
        (
            "sdxl",
            "it belongs to SDXL or Stable Diffusion, not to FLUX: no layer of FLUX fits its key",
        ),
        ("short", "cut short"),
        ("../0", "There is no adapter ../0 here"),
        ("nothing", "There is no adapter nothing here"),
        ("https://127.0.0.1:9/x.safetensors", "not on the public internet"),
    ],
)
def test_a_bad_adapter_is_one_clear_error_at_its_field(http: httpx.Client, path: str, words: str) -> None:
    answer = ask(http, {"path": "0"}, {"path": path})
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["body", "loras", 1, "path"]
    assert words in problem["msg"]
    assert problem["msg"][0] == "T", "a sentence, from node and worker"
    assert "Traceback" not in answer.text
    assert drawn(http).shape == (128, 128, 3), "others are drawn as before"


def test_an_adapter_that_overflows_is_an_error_at_its_field_and_harms_nobody_in_its_steps(http: httpx.Client) -> None:
    """Its weights are numbers, what the model makes of them is not."""
    mixes: list[list[dict[str, Any]]] = [[], [{"path": "2"}]]
    alone = [drawn(http, *mix) for mix in mixes]
    with ThreadPoolExecutor(4) as threads:
        bad = [threads.submit(ask, http, {"path": "huge"}), threads.submit(ask, http, {"path": "0"}, {"path": "huge"})]
        together = list(threads.map(lambda mix: drawn(http, *mix), mixes))
    for each, loc, words in zip(
        bad, (["loras", 0, "path"], ["loras"]), ("The adapter", "One of the adapters"), strict=True
    ):
        answer = each.result()
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["detail"]
        assert problem["loc"] == ["body", *loc]
        assert words in problem["msg"]
    assert max(distance(a, b) for a, b in zip(alone, together, strict=True)) <= TOLERANCE


def test_more_adapters_than_a_step_should_carry_are_refused(http: httpx.Client) -> None:
    answer = ask(http, *[{"path": "0"}] * 17)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", "loras"]
    assert "at most 16 items" in answer.json()["detail"][0]["msg"]
