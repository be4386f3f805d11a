"""The embedded model's trained siblings, each against diffusers' own pipeline from its folder.

Weights come with the repository one by one; what is there is tested.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxControlNetModel
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from models.accelerator import CpuAccelerator
from models.registry import REGISTRY, ModelSpec, siblings
from models.shapes.scorer import read
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.conditions import Condition, Control, ControlNet, Fill, InputPicture, Redux, Reference
from pipelines.protocol.frames import Failed
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, of, pictures
from tests.pipelines.families.flux1.families import ask, image, mask, picture

BASE = REGISTRY["flux-shapes"]
HERE = {spec.variant: spec for spec in siblings([BASE])}
SIDE = 256
PICTURE, MASK = picture(SIDE, SIDE, 3), mask(SIDE, SIDE, (64, 64, 192, 192))
PROMPT = "a red star"

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*is deprecated"),
]


@cache
def pool() -> ModelPool:
    return ModelPool([BASE], CpuAccelerator())


def ours(model: str, *conditions: Condition) -> NDArray[np.uint8]:
    engine = Engine(pool().runner, CpuAccelerator(), choose_acceleration=pool().choose_acceleration)
    params = GenerationParams(
        model, PROMPT, SIDE, SIDE, 3, 3.5, 7, max_sequence_length=32, conditions=conditions
    )  # fmt: skip
    ask(engine, "a", params, [PICTURE, MASK])
    frames = drain(engine)
    assert not of(frames, "a", Failed), of(frames, "a", Failed)
    return pictures(frames, "a")[0]


@torch.inference_mode()
def theirs(kind: str, folder: str, parts: dict[str, object] | None = None, **call: object) -> NDArray[np.uint8]:
    pipeline: Any = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=torch.float32, **(parts or {}))
    pipeline.set_progress_bar_config(disable=True)
    values: dict[str, object] = {
        "prompt": PROMPT,
        "height": SIDE,
        "width": SIDE,
        "num_inference_steps": 3,
        "guidance_scale": 3.5,
        "max_sequence_length": 32,
        "generator": torch.Generator().manual_seed(7),
    }
    return np.asarray(pipeline(**(values | call)).images[0])


def here(*variants: str) -> pytest.MarkDecorator:
    missing = [variant for variant in variants if variant not in HERE]
    return pytest.mark.skipif(bool(missing), reason=f"the repository holds no {', '.join(missing)} sibling yet")


def source(variant: str) -> str:
    spec: ModelSpec = HERE[variant]  # type: ignore[index]
    return spec.source


@here("kontext")
def test_kontext() -> None:
    expected = theirs(
        "FluxKontextPipeline", source("kontext"), image=image(PICTURE), max_area=SIDE * SIDE, _auto_resize=False
    )
    assert np.array_equal(ours("flux-shapes-kontext", Reference((0,))), expected)


@here("fill")
def test_fill() -> None:
    drawn = ours("flux-shapes-fill", Fill(0, 1))
    expected = theirs("FluxFillPipeline", source("fill"), image=image(PICTURE), mask_image=image(MASK))
    inside = np.asarray(image(MASK)) > 0
    assert np.array_equal(drawn[inside], expected[inside])
    assert np.array_equal(drawn[~inside], np.asarray(image(PICTURE))[~inside])


@here("canny")
def test_canny() -> None:
    expected = theirs("FluxControlPipeline", source("canny"), control_image=image(PICTURE))
    assert np.array_equal(ours("flux-shapes-canny", Control("canny", 0, is_prepared=True)), expected)


@here("depth")
def test_depth() -> None:
    expected = theirs("FluxControlPipeline", source("depth"), control_image=image(PICTURE))
    assert np.array_equal(ours("flux-shapes-depth", Control("depth", 0, is_prepared=True)), expected)


@here("canny", "depth")
def test_canny_and_depth_share_what_is_the_same_file() -> None:
    canny, depth = (pool().runner(f"flux-shapes-{kind}").components for kind in ("canny", "depth"))
    assert canny.modules["vae"] is depth.modules["vae"]


@here("redux")
def test_redux() -> None:
    """Against the prior's own tokens behind the prompt's: its pipeline pads every prompt to 512 tokens, we to 32."""
    folder = source("redux")
    with torch.inference_mode():
        prior = diffusers.FluxPriorReduxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        seen = prior.image_embedder(prior.encode_image(image(PICTURE), "cpu", 1)).image_embeds
        base: Any = diffusers.FluxPipeline.from_pretrained(BASE.source, torch_dtype=torch.float32)
        tokens, pooled, _ = base.encode_prompt(PROMPT, None, max_sequence_length=32)
    expected = theirs(
        "FluxPipeline", BASE.source, prompt=None, pooled_prompt_embeds=pooled,
        prompt_embeds=torch.cat((tokens, seen), dim=1),
    )  # fmt: skip
    assert np.array_equal(ours("flux-shapes", Redux((0,), "flux-shapes-redux")), expected)


@here("redux")
def test_the_more_a_picture_counts_the_more_it_is_drawn() -> None:
    """A blue circle on yellow, and a text of a red star on white, by the shares that ultra gives them."""
    shown = Image.new("RGB", (SIDE, SIDE), (245, 215, 45))
    ImageDraw.Draw(shown).ellipse((78, 78, 178, 178), fill=(25, 60, 200))
    given = InputPicture(SIDE, SIDE, 3, shown.tobytes())
    engine = Engine(pool().runner, CpuAccelerator(), choose_acceleration=pool().choose_acceleration)
    for share in (None, 0.0, 0.1, 1.0):
        blend = () if share is None else (Redux((0,), "flux-shapes-redux", share, prompt_strength=1 - share),)
        prompt = "a red star on a white background"
        params = GenerationParams(
            "flux-shapes", prompt, SIDE, SIDE, 4, 3.5, 1, max_sequence_length=32, conditions=blend
        )
        ask(engine, str(share), params, [given])
    frames = drain(engine)
    drawn = {share: pictures(frames, str(share))[0] for share in (None, 0.0, 0.1, 1.0)}
    seen = {share: read(each) for share, each in drawn.items()}
    assert np.abs(drawn[0.0].astype(int) - drawn[None]).max() <= 1, "as without a picture"
    assert {share: reading.ground for share, reading in seen.items()} == {
        None: "white", 0.0: "white", 0.1: "white", 1.0: "yellow",
    }  # fmt: skip
    assert {share: [thing.colour for thing in reading.things] for share, reading in seen.items()} == {
        None: ["red"], 0.0: ["red"], 0.1: ["red"], 1.0: ["blue"],
    }  # fmt: skip


@here("controlnet")
def test_controlnet() -> None:
    net = FluxControlNetModel.from_pretrained(source("controlnet"), torch_dtype=torch.float32)
    expected = theirs(
        "FluxControlNetPipeline", BASE.source, {"controlnet": net}, control_image=image(PICTURE),
        controlnet_conditioning_scale=0.8,
    )  # fmt: skip
    assert np.array_equal(ours("flux-shapes", ControlNet("flux-shapes-controlnet-canny", 0, 0.8)), expected)


@pytest.mark.parametrize("spec", HERE.values(), ids=lambda spec: spec.name)
def test_a_sibling_comes_on_demand_and_shares_the_rest(spec: ModelSpec) -> None:
    if spec.name == "sdxl-shapes-lightning":  # it has a schedule of its own and nothing else
        pool().runner("sdxl-shapes")
    before = pool().weights()
    held = pool().runner(spec.name) if spec.draws else pool().auxiliary(spec.name)
    added = pool().weights() - before
    assert added <= 1.01 * own_bytes(Path(spec.source)), "what is linked is held once"
    if spec.family == BASE.family:
        assert added < 12_000_000
    assert held is not None


def own_bytes(folder: Path) -> int:
    """Of all weights in float32 in parts of its own; a linked shard counts, as another class reads it anew."""
    files = [file for file in folder.rglob("*.safetensors") if file.parent.resolve().is_relative_to(folder.resolve())]
    assert files or folder.name == "sdxl-shapes-lightning"
    return sum(4 * tensor.numel() for file in files for tensor in load_file(file).values())
