"""From latents to a picture, and from the end of one phase to the start of a larger one."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from models.components import FluxComponents
from pipelines.families.flux1.conditioning import Phase
from pipelines.families.flux1.sampling import add_noise, initial_noise, pack_latents, unpack_latents
from pipelines.pictures.latents import Encoded


def decoded(vae: AutoencoderKL, latents: Tensor, phase: Phase) -> Tensor:
    """(N, C) finished latents as a picture (3, H, W), about in [-1, 1]."""
    unpacked = unpack_latents(latents[None], phase.height, phase.width)
    scaled = unpacked / vae.config.scaling_factor + vae.config.shift_factor
    picture: Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0][0]
    return picture


def enlarged(components: FluxComponents, latents: Tensor, before: Phase, after: Phase, seed: int) -> Tensor:
    """(N, C) finished latents of one phase as the first (N', C) of the next.

    The picture is enlarged as pixels, encoded, and mixed with noise from the row's seed: the second phase is
    FluxImg2ImgPipeline on the enlarged picture.
    """
    cell = components.vae_scale_factor
    picture = decoded(components.vae, latents, before)[None].float().clamp(-1, 1)
    size = after.height * cell, after.width * cell
    larger = functional.interpolate(picture, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
    generator = torch.Generator().manual_seed(seed)
    clean = pack_latents(Encoded(components.vae, larger, components.dtype).sample(generator))[0]
    noise = initial_noise(generator, components.latent_channels, after.height, after.width, components.dtype)
    return add_noise(clean, noise.to(components.device), after.levels[0])
