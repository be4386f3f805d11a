"""What only a CUDA device can show; run with `make test-gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.accelerator import Accelerator, open_accelerator
from models.loading import load
from models.registry import REGISTRY, TINY
from pipelines.attention import choose_attention, grouped_attention, varlen_attention
from pipelines.engine import Engine
from pipelines.protocol import Finished
from pipelines.runner import FluxRunner
from tests.pipelines.driving import drain, make_params, of, pictures, submit

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


def test_variable_length_attention_equals_grouped(accelerator: Accelerator) -> None:
    lengths = [300, 300, 77, 1024]
    query, key, value = torch.randn(3, sum(lengths), 4, 64, device=accelerator.device, dtype=torch.bfloat16)
    assert choose_attention(accelerator.attention, torch.float32) is grouped_attention
    ours = varlen_attention(query, key, value, lengths).float()
    assert torch.allclose(ours, grouped_attention(query, key, value, lengths).float(), atol=2e-2)


def test_the_tiny_model_runs_in_half_precision(accelerator: Accelerator) -> None:
    tiny = FluxRunner(load(TINY, accelerator), accelerator)
    assert tiny.components.dtype == torch.bfloat16
    engine = Engine(lambda name: tiny, accelerator)
    for index in range(5):
        submit(engine, str(index), make_params(width=64 + 16 * index, preview_every=2))
    frames = drain(engine)
    assert all(of(frames, str(index), Finished) for index in range(5))
