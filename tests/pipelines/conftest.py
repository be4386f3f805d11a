"""A complete FLUX of a few thousand weights, loud enough that mistakes show in the pixels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.loading import load
from models.registry import TINY
from pipelines.families.flux1.runner import FluxRunner


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and other suites may run beside this one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def amplify(module: nn.Module, std: float, seed: int = 0) -> None:
    """Redraw the matrices with a larger spread than the N(0, 0.02) of the benchmark weights."""
    generator = torch.Generator(next(module.parameters()).device).manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, std, generator=generator)


@pytest.fixture(scope="session")
def components() -> FluxComponents:
    """`random:tiny` in float32 on the CPU, its weights amplified so that pictures use the whole range of pixels."""
    loaded = load(TINY, CpuAccelerator())
    for part, std in (("transformer", 0.2), ("vae", 0.2), ("text_encoder", 0.2), ("text_encoder_2", 0.2)):
        amplify(loaded.modules[part], std)
    return loaded


@pytest.fixture(scope="session")
def runner(components: FluxComponents) -> FluxRunner:
    return FluxRunner(components, CpuAccelerator())
