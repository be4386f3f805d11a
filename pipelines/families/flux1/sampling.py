"""The arithmetic around the transformer, as pure functions that equal diffusers' FluxPipeline bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from pipelines.families.flow import noise_levels


def flow_match_sigmas(config: Mapping[str, Any], num_steps: int, image_tokens: int) -> Tensor:
    """The noise levels of one request, see `noise_levels`.

    Args: config: the checkpoint's scheduler_config. image_tokens: of this picture; dynamic shifting depends on it.
    """
    mu = calculate_shift(
        image_tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    return noise_levels(config, num_steps, mu)


def unshifted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule of a second phase: even steps, so that its strength is the noise level that it begins at.

    Shifted for 4 megapixels (mu 3.2), the last third of the steps would begin at 0.92 and draw everything anew.
    """
    return dict(config) | {"use_dynamic_shifting": False, "shift": 1.0}


def initial_noise(generator: torch.Generator, channels: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Packed noise of one picture: (height/2 * width/2, channels * 4), on the CPU.

    Always drawn by a CPU generator in the model's dtype, so that it is the same on every device.

    Args: height, width: in latent cells, both even.
    Source: FluxPipeline.prepare_latents and _pack_latents.
    """
    noise = torch.randn((1, channels, height, width), generator=generator, dtype=dtype)
    return pack_latents(noise)[0]


def pack_latents(latents: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, C * 4): every token is a 2 x 2 patch."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack_latents(latents: Tensor, height: int, width: int) -> Tensor:
    """(B, H/2 * W/2, C * 4) -> (B, C, H, W), with H and W in latent cells."""
    batch, _, channels = latents.shape
    patches = latents.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(batch, channels // 4, height, width)


def position_ids(
    text_tokens: int, height: int, width: int, dtype: torch.dtype, references: Sequence[tuple[int, int]] = ()
) -> Tensor:
    """Joint position table (text_tokens + height * width + M, 3) of one picture, with sides in tokens.

    Rounded through `dtype` because the pipeline does so: above 256 tokens a side bfloat16 merges neighbours.

    Args: references: sides of the pictures behind it, M tokens together. The first stands where FluxKontextPipeline
        puts its only one; each further one beside those before it, where the canvas stays smallest, since the
        checkpoint was trained on one picture (which may show several side by side).
    """
    canvas_height = canvas_width = 0
    parts = [torch.zeros(text_tokens, 3, dtype=torch.float32), _grid(height, width, (0.0, 0.0, 0.0))]
    for ref_height, ref_width in references:
        is_beside = ref_height + canvas_height > ref_width + canvas_width
        top, left = (0, canvas_width) if is_beside else (canvas_height, 0)
        parts.append(_grid(ref_height, ref_width, (1.0, top, left)))
        canvas_height, canvas_width = max(canvas_height, top + ref_height), max(canvas_width, left + ref_width)
    return torch.cat(parts).to(dtype)


def _grid(height: int, width: int, origin: tuple[float, float, float]) -> Tensor:
    """(height * width, 3) positions of one picture's tokens, row by row."""
    ids = torch.zeros(height, width, 3, dtype=torch.float32) + torch.tensor(origin, dtype=torch.float32)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    return ids.reshape(height * width, 3)


def pack_mask(mask: Tensor, cell: int) -> Tensor:
    """A mask (1, 1, H, W) as FLUX.1-Fill sees it: (H/2c * W/2c, 4 c^2), all pixels of a token side by side.

    Args: cell: c, pixels that a latent cell covers along one side. Source: FluxFillPipeline.prepare_mask_latents.
    """
    height, width = mask.shape[-2] // cell, mask.shape[-1] // cell
    cells = mask.view(1, height, cell, width, cell).permute(0, 2, 4, 1, 3)
    return pack_latents(cells.reshape(1, cell * cell, height, width))[0]
