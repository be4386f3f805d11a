"""The arithmetic around the transformer, as pure functions that equal diffusers' Flux3ModularPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.families.flow import noise_levels
from pipelines.families.flux2.latents import pack

ROPE_SCALE = 0.5
"""Between rows and columns of a picture's positions, as the model was trained."""

Sides = tuple[int, int]
"""(height, width) in tokens."""


def sigmas_of(config: Mapping[str, Any], num_steps: int) -> Tensor:
    """The noise levels of one request: float32, (num_steps + 1,); their shift is the same for every size."""
    return noise_levels(config, num_steps, mu=0.0)


def initial_noise(generator: torch.Generator, channels: int, sides: Sides, dtype: torch.dtype) -> Tensor:
    """Noise of one picture, (h * w, C), drawn in float32 on the CPU: the same on every device."""
    return pack(torch.randn((1, channels, *sides), generator=generator, dtype=torch.float32).to(dtype))


def text_ids(tokens: int) -> Tensor:
    """(T, 4) float32: text goes along the last axis."""
    return torch.cartesian_prod(*(torch.arange(1),) * 3, torch.arange(tokens)).float()


def picture_ids(drawn: Sides, references: Sequence[Sides] = ()) -> Tensor:
    """(N + M, 4) float32; the last axis tells pictures apart: 0 is drawn, -1, -2, ... are looked at."""
    return torch.cat([_grid(-index, sides) for index, sides in enumerate((drawn, *references))])


def _grid(place: int, sides: Sides) -> Tensor:
    """(h * w, 4) positions of one picture's tokens, row by row."""
    ids = torch.cartesian_prod(
        torch.arange(1), torch.arange(sides[0]), torch.arange(sides[1]), torch.tensor([place])
    ).float()
    ids[:, 1:3] *= ROPE_SCALE
    return ids
