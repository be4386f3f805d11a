"""SDXL's decoding where the memory does not hold a whole picture, which `models.memory` counts on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.memory import TILED_SIDE
from tests.pipelines.families.sdxl.small import components, draw, params

# diffusers' Euler scheduler makes a numpy array of a tensor in a way that numpy 2 will change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, vae = params("sdxl", width=768, height=576, num_inference_steps=2), components("sdxl").vae
    (whole,) = draw("sdxl", wanted)
    decode, sides = vae.decoder.forward, []
    side = TILED_SIDE // 2 ** (len(vae.config.block_out_channels) - 1)

    def scarce(sample: Tensor, *args: object, **kwargs: object) -> Tensor:
        if sample.shape[-1] > side:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sides.append(sample.shape[-1])
        result: Tensor = decode(sample, *args, **kwargs)
        return result

    monkeypatch.setattr(vae.decoder, "forward", scarce)
    monkeypatch.setattr(CpuAccelerator, "is_out_of_memory", lambda self, exc: isinstance(exc, torch.OutOfMemoryError))
    (tiled,) = draw("sdxl", wanted)
    assert max(sides) == side
    assert tiled.shape == whole.shape == (576, 768, 3)
    assert np.abs(tiled.astype(int) - whole).mean() < 12
