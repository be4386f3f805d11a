"""SDXL's latents and the VAE's: scaled, and for some checkpoints centred and spread by channel."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor


class Encoded:
    """What the encoder knows of one picture. Args: pixels: (1, 3, H, W) in [-1, 1], on the VAE's device."""

    def __init__(self, vae: AutoencoderKL, pixels: Tensor) -> None:
        self._vae = vae
        self._cells = vae.encode(pixels.to(vae.dtype)).latent_dist

    def noise(self, generator: torch.Generator) -> Tensor:
        """What a sample takes of a CPU generator: (1, C, h, w) on the host."""
        return torch.randn(self._cells.mean.shape, generator=generator, dtype=self._cells.mean.dtype)

    def sample(self, noise: Tensor, dtype: torch.dtype) -> Tensor:
        """(1, C, h, w) latents as the UNet takes them. Args: noise: from `noise`, on the device.

        Source: StableDiffusionXLImg2ImgPipeline.prepare_latents.
        """
        sample: Tensor = (self._cells.mean + self._cells.std * noise).to(dtype)
        scale, spread = float(self._vae.config.scaling_factor), _spread(self._vae, sample)
        if spread is None:
            return scale * sample
        mean, std = spread
        return (sample - mean) * scale / std


def decodable(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(B, C, h, w) latents as the decoder takes them. Source: StableDiffusionXLPipeline.__call__."""
    scale, spread = float(vae.config.scaling_factor), _spread(vae, latents)
    if spread is None:
        return (latents / scale).to(vae.dtype)
    mean, std = spread
    return (latents * std / scale + mean).to(vae.dtype)


def _spread(vae: AutoencoderKL, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of every channel, (1, C, 1, 1), of checkpoints that name them."""
    named = [vae.config.get(name) for name in ("latents_mean", "latents_std")]
    if None in named:
        return None
    mean, std = (torch.tensor(each).view(1, -1, 1, 1).to(like.device, like.dtype) for each in named)
    return mean, std
