"""Pictures, masks, adapters and ControlNets from both official clients, through all FLUX.1 endpoints that take them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import BaseModel

from models.registry import REGISTRY
from models.shapes.scorer import read
from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.schemas.base import LoraWeight, Sized, Steered
from server.api.schemas.fill import FluxLoraFill, FluxProErase, FluxProFill
from server.api.schemas.general import ControlNetWeight
from server.api.schemas.pictures import MaskUrl, PictureUrl
from tests.acceptance.official import CLIENTS, Trace, trace
from tests.acceptance.serving import MODEL, Server
from tests.acceptance.test_first_picture import download

SIDE = 256
PROMPT = "a red circle on a blue background"
FLUX_1 = {spec.variant for spec in REGISTRY.values() if spec.family == "flux"}
ASKED: dict[str, Any] = {
    "seed": 3,
    "output_format": "png",
    "num_inference_steps": 10,
    "aspect_ratio": "1:1",
    "image_prompt_strength": 1,  # of ultra: the picture alone
}
"""Values of fields, where an endpoint has them."""

Fill = Callable[[Any], Any]


def brought_by(annotation: Any) -> Any:
    """What a field of this type has to bring that is a picture, a mask, an adapter or a ControlNet; None if nothing."""
    if get_origin(annotation) is list:
        one = brought_by(get_args(annotation)[0])
        return None if one is None else [one, "@inline PICTURE"] if one == "@upload PICTURE" else [one]
    if not isinstance(annotation, type):
        return next((one for part in get_args(annotation) if (one := brought_by(part)) is not None), None)
    if issubclass(annotation, PictureUrl):
        return "@inline MASK" if issubclass(annotation, MaskUrl) else "@upload PICTURE"
    if issubclass(annotation, LoraWeight):
        return {"path": "outline", "scale": 0.3}
    if issubclass(annotation, ControlNetWeight):
        return {"path": "flux-shapes-controlnet-canny", "control_image_url": "@upload EDGES", "conditioning_scale": 0.5}
    return brought_to(annotation) or None if issubclass(annotation, BaseModel) else None


def brought_to(schema: type[BaseModel]) -> dict[str, Any]:
    """The same for all fields of an input."""
    found = {name: brought_by(field.annotation) for name, field in schema.model_fields.items()}
    return {name: value for name, value in found.items() if value is not None}


def call_of(endpoint: Endpoint) -> dict[str, Any]:
    """An input that brings all that the endpoint's fields take, and costs little."""
    schema, fields = endpoint.schema, endpoint.schema.model_fields
    brought = brought_to(schema)
    call = brought | {name: value for name, value in ASKED.items() if name in fields}
    if "strength" in fields and "@inline MASK" not in brought.values():
        call["strength"] = 0.3
    if issubclass(schema, Sized) or "image_url" not in brought:
        call |= {"image_size": {"width": SIDE, "height": SIDE}} if "image_size" in fields else {}
    if "prompt" in fields and not issubclass(schema, Steered):
        call["prompt"] = prompt_of(endpoint)
    if issubclass(schema, FluxProErase):
        call["mask_url"] = "@upload DISC"
    return call


def prompt_of(endpoint: Endpoint) -> str:
    if endpoint.category == "image-editing":
        return "make the circle green"
    if endpoint.category == "control":
        return "red on blue"
    if issubclass(endpoint.schema, FluxProFill | FluxLoraFill):
        return "a yellow circle"
    return "a green star on white" if "image_prompt_strength" in endpoint.schema.model_fields else PROMPT


TAKING = {
    name: call_of(endpoint)
    for name, endpoint in ENDPOINTS.items()
    if FLUX_1 & set(endpoint.variants) and brought_to(endpoint.schema)
}
"""The FLUX.1 endpoints that take a picture, a mask, an adapter or a ControlNet, and calls that bring all of them."""


def drawn() -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (25, 60, 200))
    ImageDraw.Draw(picture).ellipse((78, 78, 178, 178), fill=(220, 30, 30))
    return picture


def mask() -> Image.Image:
    """White on the right half, at half the picture's size: any size will do."""
    shades = Image.new("L", (SIDE // 2, SIDE // 2))
    shades.paste(255, (SIDE // 4, 0, SIDE // 2, SIDE // 2))
    return shades


def disc() -> Image.Image:
    """White where the circle is."""
    shades = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(shades).ellipse((70, 70, 186, 186), fill=255)
    return shades


def edges() -> Image.Image:
    """The circle's, white on black, as a ControlNet takes them."""
    lines = Image.new("RGB", (SIDE, SIDE))
    ImageDraw.Draw(lines).ellipse((78, 78, 178, 178), outline=(255, 255, 255), width=2)
    return lines


@pytest.fixture(scope="module")
def fill(tmp_path_factory: pytest.TempPathFactory) -> Fill:
    """Puts the paths of real files into a call."""
    folder: Path = tmp_path_factory.mktemp("pictures")
    names = {}
    for name, picture in {"PICTURE": drawn(), "MASK": mask(), "DISC": disc(), "EDGES": edges()}.items():
        names[name] = str(folder / f"{name.lower()}.png")
        picture.save(names[name])

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(each) for each in value]
        if isinstance(value, dict):
            return {name: filled(each) for name, each in value.items()}
        how, _, what = value.partition(" ") if isinstance(value, str) else ("", "", "")
        return f"{how} {names[what]}" if how[:1] == "@" else value

    return filled


def told(server: Server, name: str, calls: list[Any]) -> Trace:
    """What a client tells of these calls, with its uploads led here, too."""
    client = CLIENTS[name]
    if (reason := client.why_not()) is not None:
        pytest.skip(reason)
    setup = server.setup("python-proxy" if client.setup_name == "python" else client.setup_name)
    return trace(client.start_with(setup, "pictures", "", {"calls": calls}))


@pytest.mark.parametrize("name", ["python", "node"])
@pytest.mark.parametrize("category", sorted({ENDPOINTS[endpoint].category for endpoint in TAKING}))
def test_every_endpoint_that_takes_a_picture_or_an_adapter_draws(
    server: Server, fill: Fill, name: str, category: str
) -> None:
    listed = httpx.get(f"{server.url}/v1/models", params={"limit": 200}, timeout=10).json()["models"]
    active = {row["endpoint_id"] for row in listed if row["metadata"]["status"] == "active"}
    calls = {endpoint: call for endpoint, call in TAKING.items() if ENDPOINTS[endpoint].category == category}
    assert calls.keys() - active == set(), "the embedded model serves them all"
    ends = {event["endpoint"]: event for event in told(server, name, [[*each] for each in fill(calls).items()]).events}
    assert ends.keys() == calls.keys()
    assert {endpoint: end for endpoint, end in ends.items() if end["event"] != "result"} == {}
    for endpoint, end in ends.items():
        judge(server, endpoint, end["result"])


def judge(server: Server, endpoint: str, result: dict[str, Any]) -> None:
    call = TAKING[endpoint]
    (image,) = result["images"]
    # Who came by the proxy is told fal's own names.
    picture = download(server, server.url + urlsplit(image["url"]).path).convert("RGB")
    side = 2048 if "image_prompt_strength" in call else 1024 if "aspect_ratio" in call else SIDE
    assert picture.size == (image["width"], image["height"]) == (side, side), endpoint
    if "@inline MASK" in call.values():
        left = (0, 0, SIDE // 4, SIDE)  # well away from the soft edge of a mask that was enlarged
        # Byte for byte, but where the endpoint publishes no format and so answers with a JPEG.
        worst = 0 if image["content_type"] == "image/png" else 16
        moved = np.asarray(picture.crop(left)).astype(int) - np.asarray(drawn().crop(left))
        assert np.abs(moved).max() <= worst, endpoint
    if MODEL != "flux-shapes":
        return
    reading = read(np.asarray(picture))
    assert reading.ground == "blue", (endpoint, reading)
    colours = [thing.colour for thing in reading.things]
    if issubclass(ENDPOINTS[endpoint].schema, FluxProErase):
        assert colours == [], (endpoint, reading)
    else:
        assert colour_of(endpoint) in colours, (endpoint, reading)


def colour_of(endpoint: str) -> str:
    """Of the thing that was asked for; never its shape, which not all siblings draw reliably."""
    if ENDPOINTS[endpoint].category == "image-editing":
        return "green"
    # Pictures to fill in after leave the text aside.
    return (
        "yellow" if "yellow" in TAKING[endpoint].get("prompt", "") and "fill_image" not in TAKING[endpoint] else "red"
    )


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
