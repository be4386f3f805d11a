"""Pictures through the VAE's encoder."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class Encoded:
    """What the encoder knows of one picture: a mean and a spread for every latent cell.

    Args: pixels: (1, 3, H, W) in [-1, 1], on the VAE's device. dtype: of the latents; the VAE may work in another.
    """

    def __init__(self, vae: AutoencoderKL, pixels: Tensor, dtype: torch.dtype) -> None:
        self._vae = vae
        self._dtype = dtype
        self._cells = vae.encode(pixels.to(vae.dtype)).latent_dist

    def noise(self, generator: torch.Generator) -> Tensor:
        """What a sample takes of a CPU generator: (1, C, h, w) on the host."""
        return torch.randn(self._cells.mean.shape, generator=generator, dtype=self._cells.mean.dtype)

    def sample(self, noise: Tensor) -> Tensor:
        """(1, C, h, w) scaled latents. Args: noise: from `noise`, on the device.

        Source: DiagonalGaussianDistribution.sample, which draws and copies by itself, and waits for the device.
        """
        return self._scaled(self._cells.mean + self._cells.std * noise)

    def mode(self) -> Tensor:
        """(1, C, h, w) scaled latents, the likeliest."""
        return self._scaled(self._cells.mode())

    def _scaled(self, latents: Tensor) -> Tensor:
        scaled: Tensor = (latents - self._vae.config.shift_factor) * self._vae.config.scaling_factor
        return scaled.to(self._dtype)
