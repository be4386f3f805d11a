"""Latents through a VAE's decoder, within whatever memory there is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models.accelerator import Accelerator
from models.memory import TILED_SIDE


def decode_in_memory(vae: Any, latents: Tensor, accelerator: Accelerator) -> Tensor:
    """(1, C, h, w) as the decoder of an AutoencoderKL or its kin takes them -> (1, 3, H, W), about in [-1, 1].

    Where memory does not suffice it is decoded in tiles that overlap and are blended: a little different, not refused.
    """
    try:
        picture: Tensor = vae.decode(latents, return_dict=False)[0]
    except Exception as exc:
        if not accelerator.is_out_of_memory(exc):
            raise
    else:
        return picture
    accelerator.release_cached_memory()
    vae.tile_sample_min_size = TILED_SIDE
    vae.tile_latent_min_size = TILED_SIDE // 2 ** (len(vae.config.block_out_channels) - 1)
    tiled: Tensor = vae.tiled_decode(latents, return_dict=False)[0]
    return tiled
