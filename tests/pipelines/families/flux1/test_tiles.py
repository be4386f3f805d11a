"""Decoding where the memory does not hold a whole picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.loading import load
from models.registry import REGISTRY
from pipelines.families.flux1.runner import FluxRunner
from tests.pipelines.driving import drain, make_engine, make_params, pictures, submit


def drawn(components: FluxComponents) -> NDArray[np.uint8]:
    engine = make_engine(FluxRunner(components, CpuAccelerator()))
    submit(engine, "a", make_params(width=768, height=768, num_inference_steps=4, max_sequence_length=32))
    (picture,) = pictures(drain(engine), "a")
    return picture


def test_a_picture_that_does_not_fit_is_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    components = load(REGISTRY["flux-shapes"], CpuAccelerator())
    whole, decode, cells = drawn(components), components.vae.decoder.forward, []

    def scarce(sample: Tensor, *args: object, **kwargs: object) -> Tensor:
        if sample.shape[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        cells.append(sample.shape[-1])
        result: Tensor = decode(sample, *args, **kwargs)
        return result

    monkeypatch.setattr(components.vae.decoder, "forward", scarce)
    monkeypatch.setattr(CpuAccelerator, "is_out_of_memory", lambda self, exc: isinstance(exc, torch.OutOfMemoryError))
    tiled = drawn(components)
    assert max(cells) == 16
    assert tiled.shape == whole.shape
    assert np.abs(tiled.astype(int) - whole).mean() < 12
