"""FLUX.2's latents: 2 x 2 patches of the VAE's cells as channels, normalised by the VAE's running statistics.

Source of all: Flux2KleinPipeline, whose order of operations is kept.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor


def patchify(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 4 C, H / 2, W / 2)."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(batch, channels * 4, height // 2, width // 2)


def unpatchify(latents: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return patches.reshape(batch, channels // 4, height * 2, width * 2)


def pack(latents: Tensor) -> Tensor:
    """(1, C, h, w) -> (h * w, C) tokens, row by row."""
    return latents.flatten(2)[0].t()


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(h * w, C) tokens -> (1, C, h, w)."""
    return tokens.view(height, width, -1).permute(2, 0, 1)[None]


def encoded(vae: AutoencoderKLFlux2, pixels: Tensor) -> Tensor:
    """(1, 3, H, W) in [-1, 1] -> (1, C, h, w) normalised patches, the likeliest."""
    patches = patchify(vae.encode(pixels.to(vae.dtype)).latent_dist.mode())
    mean, std = _statistics(vae, patches)
    return (patches - mean) / std


def decodable(vae: AutoencoderKLFlux2, patches: Tensor) -> Tensor:
    """(B, C, h, w) normalised patches as the decoder takes them."""
    mean, std = _statistics(vae, patches)
    return unpatchify(patches * std + mean).to(vae.dtype)


def _statistics(vae: AutoencoderKLFlux2, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of every channel, (1, C, 1, 1)."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return mean.to(like.device, like.dtype), std.to(like.device, like.dtype)
