"""From latents to a finished picture on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.accelerator import Accelerator
from models.memory import TILED_SIDE
from pipelines.engine.runner import Decoded
from pipelines.pictures.overlay import Overlay
from pipelines.protocol.params import GenerationParams


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


def delivered(
    picture: Tensor, latents: Tensor, params: GenerationParams, accelerator: Accelerator, overlay: Overlay | None = None
) -> Decoded:
    """What is drawn (3, H, W), about in [-1, 1], cropped to what was asked for and on its way to the host.

    Args: overlay: the pixels to put back.
    """
    is_finite = torch.isfinite(picture).all() & torch.isfinite(latents).all()
    pixels = crop_centred(to_pixels(picture), params.height, params.width)
    pixels = pixels if overlay is None else overlay.over(pixels)
    return Decoded(accelerator.to_host(pixels.contiguous()), accelerator.to_host(is_finite))


def to_pixels(image: Tensor) -> Tensor:
    """A decoded picture (3, H, W) in [-1, 1] as uint8 (H, W, 3), on its device.

    Source: VaeImageProcessor.postprocess; the same order of rounding, so that pixels are equal to its own.
    """
    unit = (image * 0.5 + 0.5).clamp(0, 1)
    return (unit.permute(1, 2, 0).float() * 255).round().to(torch.uint8)


def crop_centred(pixels: Tensor, height: int, width: int) -> Tensor:
    """The middle of (H, W, 3): models draw multiples of their cell, users ask for any size."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]
