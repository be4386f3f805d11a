"""Pictures from both official clients, uploaded, inline and as a Blob, through the picture endpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from server.api.endpoints import ENDPOINTS
from tests.acceptance.official import CLIENTS, Trace, trace
from tests.acceptance.serving import Server
from tests.acceptance.test_first_picture import download

SIDE = 256
PROMPT = "a red circle on a blue background"
HALF = {"prompt": PROMPT, "seed": 3, "output_format": "png"}
REWORK = HALF | {"image_url": "@upload PICTURE", "strength": 0.3}
MASKED = HALF | {"image_url": "@upload PICTURE", "mask_url": "@inline MASK"}
SMALL = HALF | {"image_size": {"width": SIDE, "height": SIDE}}
VARIED = SMALL | {"image_url": "@upload PICTURE"}
EDIT = HALF | {"image_url": "@upload PICTURE", "prompt": "make the circle green"}

CALLS: dict[str, dict[str, Any]] = {
    "flux/dev/image-to-image": REWORK | {"num_inference_steps": 20},
    "flux/krea/image-to-image": REWORK | {"num_inference_steps": 20},
    "flux-lora/image-to-image": REWORK,
    "flux-general/image-to-image": REWORK,
    "flux-lora/inpainting": MASKED,
    "flux-general/inpainting": MASKED,
    "flux-general/differential-diffusion": HALF
    | {"image_url": "@upload PICTURE", "change_map_image_url": "@inline MASK"},
    "flux-pro/v1/fill": MASKED,
    "flux-lora-fill": MASKED,
    "flux-pro/v1/erase": {"image_url": "@upload PICTURE", "mask_url": "@upload MASK", "output_format": "png"},
    "flux/dev/redux": VARIED,
    "flux-pro/v1/redux": VARIED,
    "flux-pro/v1.1/redux": VARIED,
    "flux-pro/v1/canny": SMALL | {"control_image_url": "@upload PICTURE"},
    "flux-lora-canny": VARIED,
    "flux-control-lora-canny": SMALL | {"control_lora_image_url": "@upload PICTURE"},
    "flux-pro/v1/depth": SMALL | {"control_image_url": "@upload PICTURE"},
    "flux-kontext/dev": EDIT | {"num_inference_steps": 10},
    "flux-kontext-lora": EDIT | {"num_inference_steps": 10},
}
KEPT_OUTSIDE = ("flux-lora/inpainting", "flux-general/inpainting", "flux-pro/v1/fill", "flux-lora-fill")
LIKE_THE_PICTURE = tuple(name for name, call in CALLS.items() if call.get("strength") == 0.3)

Fill = Callable[[dict[str, Any]], dict[str, Any]]


def drawn() -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (25, 60, 200))
    ImageDraw.Draw(picture).ellipse((78, 78, 178, 178), fill=(220, 30, 30))
    return picture


def mask() -> Image.Image:
    """White on the right half, at half the picture's size: any size will do."""
    shades = Image.new("L", (SIDE // 2, SIDE // 2))
    shades.paste(255, (SIDE // 4, 0, SIDE // 2, SIDE // 2))
    return shades


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Fill:
    """Puts the paths of real files into a call."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    drawn().save(folder / "picture.png")
    mask().save(folder / "mask.png")
    names = {"PICTURE": str(folder / "picture.png"), "MASK": str(folder / "mask.png")}

    def filled(call: dict[str, Any]) -> dict[str, Any]:
        words = {name: value.split(" ") for name, value in call.items() if isinstance(value, str) and value[:1] == "@"}
        return call | {name: f"{how} {names[what]}" for name, (how, what) in words.items()}

    return filled


def told(server: Server, name: str, calls: list[Any]) -> Trace:
    """What a client tells of these calls, with its uploads led here, too."""
    client = CLIENTS[name]
    if (reason := client.why_not()) is not None:
        pytest.skip(reason)
    setup = server.setup("python-proxy" if client.setup_name == "python" else client.setup_name)
    return trace(client.start_with(setup, "pictures", "", {"calls": calls}))


@pytest.mark.parametrize("name", ["python", "node"])
def test_every_picture_endpoint_draws_or_names_what_it_lacks(server: Server, fill: Fill, name: str) -> None:
    listed = httpx.get(f"{server.url}/v1/models", timeout=10).json()["models"]
    active = {row["endpoint_id"] for row in listed if row["metadata"]["status"] == "active"}
    calls = [[f"fal-ai/{endpoint}", fill(call)] for endpoint, call in CALLS.items()]
    ends = {event["endpoint"].removeprefix("fal-ai/"): event for event in told(server, name, calls).events}
    assert set(ends) == set(CALLS)
    for endpoint, event in ends.items():
        assert f"fal-ai/{endpoint}" in ENDPOINTS
        if f"fal-ai/{endpoint}" in active:
            assert event["event"] == "result", event
            judge(server, endpoint, event["result"])
        else:
            assert event["status"] == 404, event
            assert "--model FLUX.1-" in event["detail"]


def judge(server: Server, endpoint: str, result: dict[str, Any]) -> None:
    (image,) = result["images"]
    # Who came by the proxy is told fal's own names.
    picture = download(server, server.url + urlsplit(image["url"]).path)
    assert picture.size == (image["width"], image["height"]) == (SIDE, SIDE), endpoint
    if endpoint in LIKE_THE_PICTURE:
        assert np.asarray(picture.convert("RGB"))[8, 8].argmax() == 2, f"{endpoint}: the ground is not blue"
        assert np.asarray(picture.convert("RGB"))[SIDE // 2, SIDE // 2].argmax() == 0, f"{endpoint}: nothing is red"
    if endpoint in KEPT_OUTSIDE:
        left = (0, 0, SIDE // 4, SIDE)  # well away from the soft edge of a mask that was enlarged
        assert np.array_equal(np.asarray(picture.crop(left)), np.asarray(drawn().crop(left))), endpoint


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_image_format"),
        (b"no picture at all", "image_load_error"),
    ],
)
def test_a_picture_that_cannot_be_read_is_fals_error_at_its_field(
    server: Server, tmp_path: Path, content: bytes, kind: str
) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(content)
    body = {"prompt": PROMPT, "image_url": f"@upload {file}"}
    error = told(server, "python", [["fal-ai/flux/dev/image-to-image", body]]).error
    assert (error["status"], [each["type"] for each in error["detail"]]) == (422, [kind])
    assert error["detail"][0]["loc"] == ["body", "image_url"]
