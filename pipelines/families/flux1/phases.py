"""From latents to a picture, and from the end of one phase to the start of a larger one."""

from __future__ import annotations

from collections.abc import Callable

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


def enlarged(
    components: FluxComponents,
    latents: Tensor,
    before: Phase,
    after: Phase,
    seed: int,
    upload: Callable[[Tensor], Tensor],
) -> Tensor:
    """(N, C) finished latents of one phase as the first (N', C) of the next.

    The picture is enlarged as pixels, encoded, and mixed with noise from the row's seed: the second phase is
    FluxImg2ImgPipeline on the enlarged picture. Args: upload: to the device.
    """
    vae, cell, channels = components.vae, components.vae_scale_factor, components.latent_channels
    # All that the host makes comes first: the rest is only launched.
    generator = torch.Generator().manual_seed(seed)
    spread = upload(torch.randn((1, channels, after.height, after.width), generator=generator, dtype=vae.dtype))
    noise = upload(initial_noise(generator, channels, after.height, after.width, components.dtype))
    picture = decoded(vae, latents, before)[None].float().clamp(-1, 1)
    size = after.height * cell, after.width * cell
    larger = functional.interpolate(picture, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
    clean = pack_latents(Encoded(vae, larger, components.dtype).sample(spread))[0]
    return add_noise(clean, noise, after.levels[0])
