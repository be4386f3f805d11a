"""The arithmetic around the transformer, as pure functions that equal diffusers' Flux2KleinPipeline bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from pipelines.families.flow import noise_levels
from pipelines.families.flux2.latents import pack

REFERENCE_STEP = 10
"""Between one picture and the next along the first axis of positions."""

Sides = tuple[int, int]
"""(height, width) in tokens."""


def sigmas_of(config: Mapping[str, Any], num_steps: int, image_tokens: int, levels: Sequence[float] = ()) -> Tensor:
    """The noise levels of one request, see `noise_levels`. Args: image_tokens: of the drawn picture alone."""
    mu = compute_empirical_mu(image_seq_len=image_tokens, num_steps=num_steps)
    return noise_levels(config, num_steps, mu, levels)


def initial_noise(generator: torch.Generator, channels: int, sides: Sides, dtype: torch.dtype) -> Tensor:
    """Noise of one picture, (h * w, C), on the CPU: the same on every device.

    As the pipeline has it, the channels of a token are not neighbours in memory: the first product rounds by that.
    """
    return pack(torch.randn((1, channels, *sides), generator=generator, dtype=dtype))


def position_ids(text_tokens: int, drawn: Sides, references: Sequence[Sides] = ()) -> Tensor:
    """Joint position table (T + N + M, 4): (picture, row, column, place in the text), int64."""
    text = torch.cartesian_prod(*(torch.arange(1),) * 3, torch.arange(text_tokens))
    pictures = [_grid(0, drawn)]
    pictures += [_grid(REFERENCE_STEP * (index + 1), sides) for index, sides in enumerate(references)]
    return torch.cat((text, *pictures))


def _grid(picture: int, sides: Sides) -> Tensor:
    """(h * w, 4) positions of one picture's tokens, row by row."""
    return torch.cartesian_prod(
        torch.tensor([picture]), torch.arange(sides[0]), torch.arange(sides[1]), torch.zeros(1, dtype=torch.int64)
    )
