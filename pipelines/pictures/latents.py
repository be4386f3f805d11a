"""Pictures through the VAE's encoder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class Encoded:
    """What the encoder knows of one picture: a mean and a spread for every latent cell.

    Args: pixels: (1, 3, H, W) in [-1, 1]. dtype: of the latents; the VAE may compute in a wider one.
    """

    def __init__(self, vae: AutoencoderKL, pixels: Tensor, dtype: torch.dtype) -> None:
        self._vae = vae
        self._dtype = dtype
        self._cells = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist

    def sample(self, generator: torch.Generator) -> Tensor:
        """(1, C, h, w) scaled latents; draws as many numbers from the generator as there are."""
        return self._scaled(self._cells.sample(generator=generator))

    def mode(self) -> Tensor:
        """(1, C, h, w) scaled latents, the likeliest."""
        return self._scaled(self._cells.mode())

    def _scaled(self, latents: Tensor) -> Tensor:
        scaled: Tensor = (latents - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return scaled.to(self._dtype)
