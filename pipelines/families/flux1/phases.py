"""From latents to a picture, and from the end of one phase to the start of a larger one."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from models.accelerator import Accelerator
from models.components import FluxComponents
from pipelines.families.flow import add_noise
from pipelines.families.flux1.conditioning import Phase
from pipelines.families.flux1.sampling import initial_noise, pack_latents, unpack_latents
from pipelines.pictures.decoding import decode_in_memory
from pipelines.pictures.latents import Encoded


def decoded(vae: AutoencoderKL, latents: Tensor, phase: Phase, accelerator: Accelerator) -> Tensor:
    """(N, C) finished latents as a picture (3, H, W), about in [-1, 1]."""
    unpacked = unpack_latents(latents[None], phase.height, phase.width)
    return decode_in_memory(vae, unscaled(vae, unpacked), accelerator)[0]


def unscaled(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """(B, C, H, W) latents from what the transformer sees to what the decoder takes."""
    taken: Tensor = (latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)
    return taken


def enlarged(
    components: FluxComponents, latents: Tensor, before: Phase, after: Phase, seed: int, accelerator: Accelerator
) -> Tensor:
    """(N, C) finished latents of one phase as the first (N', C) of the next.

    The picture is enlarged as pixels, encoded, and mixed with noise from the row's seed: the second phase is
    FluxImg2ImgPipeline on the enlarged picture.
    """
    vae, cell, channels = components.vae, components.vae_scale_factor, components.latent_channels
    # All that the host makes comes first: the rest is only launched.
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn((1, channels, after.height, after.width), generator=generator, dtype=vae.dtype)
    noise = initial_noise(generator, channels, after.height, after.width, components.dtype)
    spread, noise = accelerator.to_device(cells), accelerator.to_device(noise)
    picture = decoded(vae, latents, before, accelerator)[None].float().clamp(-1, 1)
    size = after.height * cell, after.width * cell
    larger = functional.interpolate(picture, size=size, mode="bicubic", align_corners=False).clamp(-1, 1)
    clean = pack_latents(Encoded(vae, larger, components.dtype).sample(spread))[0]
    return add_noise(clean, noise, after.levels[0])
