"""The arithmetic that every family of flow matching shares, as pure functions that equal diffusers' bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The picture at noise level `sigma` (scalar, in the model's dtype). Source: the scheduler's scale_noise."""
    return sigma * noise + (1.0 - sigma) * clean


def euler_step(latents: Tensor, noise_pred: Tensor, sigma_step: Tensor) -> Tensor:
    """Advance packed latents along the predicted velocity.

    Args:
        latents, noise_pred: (..., C), model dtype.
        sigma_step: next sigma minus this one, in the model's dtype, broadcastable to `latents`; rows may differ.
    Returns: like `latents`.
    Source: FlowMatchEulerDiscreteScheduler.step, which multiplies in the model's dtype and adds in float32.
    """
    return (latents.to(torch.float32) + sigma_step * noise_pred).to(noise_pred.dtype)


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
