"""Float8 weights and step caching on a CUDA device; run with `make test-gpu`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.accelerator import Accelerator, open_accelerator
from models.float8 import _emulated, _kernel, quantize_rows
from models.registry import REGISTRY
from pipelines.engine.acceleration import FLOAT8
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.frames import Note
from tests.pipelines.driving import drain, make_params, pictures, submit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NAME = "flux-shapes"


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    opened = open_accelerator("cuda")
    if not opened.has_float8:
        pytest.skip(f"{opened.name} has no float8 products")
    return opened


@pytest.fixture(scope="module")
def pool(accelerator: Accelerator) -> ModelPool:
    pool = ModelPool([REGISTRY[NAME]], accelerator)
    pool.runner(NAME)
    pool.hold_float8()
    return pool


@pytest.mark.parametrize("rows", [1, 17, 512, 4608])
def test_the_devices_product_equals_the_emulation(accelerator: Accelerator, rows: int) -> None:
    torch.manual_seed(0)
    x, weight = (torch.randn(count, 3072, device=accelerator.device, dtype=torch.bfloat16) for count in (rows, 1024))
    bias = torch.randn(1024, device=accelerator.device, dtype=torch.bfloat16)
    weight, weight_scale = quantize_rows(weight)
    factors = (*quantize_rows(x), weight, weight_scale.t(), bias)
    theirs, ours = _kernel(*factors), _emulated(*factors)
    assert float((theirs.float() - ours).norm() / ours.norm()) < 5e-3


@pytest.mark.parametrize("acceleration", ["regular", "high"])
def test_neighbours_do_not_change_an_accelerated_picture(
    pool: ModelPool, accelerator: Accelerator, acceleration: str
) -> None:
    assert pool.runner(NAME + FLOAT8) is not pool.runner(NAME), "the device holds no float8 weights"

    def draw(strangers: int) -> np.ndarray:
        engine = Engine(pool.runner, accelerator, choose_acceleration=pool.choose_acceleration)
        wanted = {"model": NAME, "acceleration": acceleration, "num_inference_steps": 20}
        submit(engine, "a", make_params(**wanted, width=512, height=384))
        for index in range(strangers):
            submit(engine, f"s{index}", make_params(**wanted, width=256 + 128 * index, height=512, seed=index))
        frames = drain(engine)
        assert not any(isinstance(frame, Note) for frame in frames)
        return pictures(frames, "a")[0].astype(int)

    alone = draw(0)
    assert np.array_equal(alone, draw(0)), "not even the same request repeats"
    difference = np.abs(alone - draw(3))
    assert difference.max() == 0, f"{(difference > 0).mean():.2%} of the values differ, by up to {difference.max()}"
