"""What only a CUDA device can show; run with `make test-gpu`."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from numpy.typing import NDArray

from models.accelerator import Accelerator, open_accelerator
from models.architectures import FLUX_TRANSFORMER
from models.fusion import fuse
from models.loading import load
from models.registry import REGISTRY, TINY
from models.tuning import parse_tuning
from pipelines.engine.engine import Engine
from pipelines.families.flux1.packed import attention_shape
from pipelines.families.flux1.runner import FluxRunner
from pipelines.ops.attention import grouped_attention, varlen_attention
from pipelines.ops.attention_choice import ROUNDED, Place, choose_rounded
from pipelines.ops.compute import choose_compute
from pipelines.ops.kernel_check import checked_triton
from pipelines.protocol.conditions import Condition, ImageToImage, Inpaint, InputPicture, Refine
from pipelines.protocol.frames import Finished
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import drain, make_params, of, pictures, submit
from tests.pipelines.families.flux1.buckets import moved_by_company
from tests.pipelines.families.flux1.families import mask, picture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STRANGERS = [(512, 512, 5), (256, 256, 3), (1024, 768, 2), (640, 448, 6), (256, 512, 4), (768, 768, 2), (512, 512, 1)]


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return open_accelerator("cuda")


@pytest.fixture(scope="module")
def runner(accelerator: Accelerator) -> FluxRunner:
    return FluxRunner(load(REGISTRY["flux-shapes"], accelerator), accelerator)


def draw(runner: FluxRunner, accelerator: Accelerator, strangers: int) -> NDArray[np.uint8]:
    engine = Engine(lambda name: runner, accelerator)
    submit(engine, "a", make_params(model="flux-shapes", width=512, height=384))
    for index, (width, height, steps) in enumerate(STRANGERS[:strangers]):
        changes = {"model": "flux-shapes", "width": width, "height": height, "num_inference_steps": steps}
        submit(engine, f"s{index}", make_params(**changes, seed=index))
    frames = drain(engine)
    assert len(of(frames, "a", Finished)) == 1
    return pictures(frames, "a")[0]


@pytest.mark.parametrize("strangers", [1, 3, 7])
def test_neighbours_do_not_change_a_picture_on_the_device(
    runner: FluxRunner, accelerator: Accelerator, strangers: int
) -> None:
    alone, together = draw(runner, accelerator, 0), draw(runner, accelerator, strangers)
    assert np.array_equal(alone, draw(runner, accelerator, 0)), "not even the same request repeats"
    difference = np.abs(alone.astype(int) - together.astype(int))
    assert difference.max() == 0, f"{(difference > 0).mean():.2%} of the values differ, by up to {difference.max()}"


FAMILIES: dict[str, tuple[tuple[Condition, ...], list[InputPicture]]] = {
    "text": ((), []),
    "from a picture": ((ImageToImage(0, 0.7),), [picture(512, 384, 1)]),
    "inpainted": ((Inpaint(0, 1, 0.8),), [picture(512, 384, 2), mask(512, 384, (100, 100, 300, 300), 9)]),
    "large": ((Refine(0.5),), []),
}


def test_families_share_steps_on_the_device(runner: FluxRunner, accelerator: Accelerator) -> None:
    """Alone and together, on streams: what is made beside the steps is there when they read it."""

    def drawn(names: list[str]) -> dict[str, NDArray[np.uint8]]:
        engine = Engine(lambda name: runner, accelerator)
        for name in names:
            conditions, given = FAMILIES[name]
            side = {"width": 1536, "height": 1024} if name == "large" else {"width": 512, "height": 384}
            params = make_params(model="flux-shapes", conditions=conditions, num_inference_steps=6, **side)
            submit(engine, name, params, pictures=[each.to_dict() for each in given])
        frames = drain(engine)
        assert all(of(frames, name, Finished) for name in names)
        return {name: pictures(frames, name)[0] for name in names}

    together = drawn(list(FAMILIES))
    for name in FAMILIES:
        difference = np.abs(together[name].astype(int) - drawn([name])[name])
        assert difference.max() == 0, f"{name}: {(difference > 0).mean():.2%} differ, by up to {difference.max()}"


@pytest.fixture(scope="module")
def two_blocks(accelerator: Accelerator) -> FluxTransformer2DModel:
    """One block of each kind in FLUX.1's own width, where matrix products choose their kernels as they do for it."""
    with torch.device(accelerator.device):
        transformer = FluxTransformer2DModel(**FLUX_TRANSFORMER | {"num_layers": 1, "num_single_layers": 1})
    transformer = transformer.to(torch.bfloat16).eval().requires_grad_(False)
    amplify(transformer, 0.02)
    return transformer


@pytest.mark.parametrize("text", ["", "kernels=torch", "attention=varlen", "attention=cudnn", "kernels=compiled"])
def test_a_picture_has_the_same_bits_in_a_pack_of_any_size(
    two_blocks: FluxTransformer2DModel, accelerator: Accelerator, text: str
) -> None:
    """Every bucket of 512 tokens up to 16 k, with each way to run; 512 x 512 pixels and 512 text tokens."""
    tuning = parse_tuning(text).resolved("cuda")
    transformer = copy.deepcopy(two_blocks)
    fuse(transformer, bool(tuning.fuse_qkv), bool(tuning.fuse_mlp))
    compute = choose_compute(tuning, *attention_shape(transformer), torch.bfloat16, accelerator, print)
    try:
        moved = moved_by_company(transformer, compute, 32, 512, range(2560, 16385, 512))
    finally:
        accelerator.allow_split_k(True)
    wrong = {tokens: distance for tokens, distance in moved.items() if distance > 0}
    assert not wrong, f"{len(wrong)} of {len(moved)} buckets move the picture: {wrong}"


def test_our_kernels_are_right_on_the_device(accelerator: Accelerator) -> None:
    notes: list[str] = []
    ops = checked_triton(24, 128, accelerator.device, torch.bfloat16, notes.append, accelerator.has_float8)
    assert (ops.name, notes) == ("triton", [])


def test_variable_length_attention_equals_grouped(accelerator: Accelerator) -> None:
    lengths = [300, 300, 77, 1024]
    query, key, value = torch.randn(3, sum(lengths), 4, 64, device=accelerator.device, dtype=torch.bfloat16)
    ours = varlen_attention(query, key, value, lengths).float()
    assert torch.allclose(ours, grouped_attention(query, key, value, lengths).float(), atol=2e-2)


@pytest.mark.parametrize("name", ROUNDED)
def test_attention_over_8_bits_is_right_on_the_device(accelerator: Accelerator, name: str) -> None:
    place = Place(accelerator.kind, accelerator.capability, torch.bfloat16)
    if reason := ROUNDED[name].missing(place):
        pytest.skip(reason)
    notes: list[str] = []
    choose_rounded(grouped_attention, place, 24, 128, accelerator, notes.append, {name: ROUNDED[name]})
    assert not [note for note in notes if "is not used" in note]


def test_the_tiny_model_runs_in_half_precision(accelerator: Accelerator) -> None:
    tiny = FluxRunner(load(TINY, accelerator), accelerator)
    assert tiny.components.dtype == torch.bfloat16
    engine = Engine(lambda name: tiny, accelerator)
    for index in range(5):
        submit(engine, str(index), make_params(width=64 + 16 * index, preview_every=2))
    frames = drain(engine)
    assert all(of(frames, str(index), Finished) for index in range(5))
