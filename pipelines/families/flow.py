"""The arithmetic that every family of flow matching shares, as pure functions that equal diffusers' bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


def noise_levels(config: Mapping[str, Any], num_steps: int, mu: float, levels: Sequence[float] = ()) -> Tensor:
    """The noise levels of one request: float32, (num_steps + 1,), from 1 down to 0.

    A scheduler object is made for this and dropped: its `step()` counts in the object, so requests cannot share one.

    Args: config: the checkpoint's scheduler_config. mu: how far dynamic shifting goes. levels: before it, in place of
        even ones; they count where there are as many as steps.
    """
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    given = list(levels) if len(levels) == num_steps else np.linspace(1.0, 1 / num_steps, num_steps)
    scheduler.set_timesteps(num_steps, sigmas=None if config.get("use_flow_sigmas") else given, mu=mu)
    sigmas: Tensor = scheduler.sigmas
    return sigmas


def rotations(pos_embed: Any, ids: Tensor) -> Tensor:
    """Complex rotations of tokens at these positions: (S, axes) -> (S, 1, head_dim / 2)."""
    cos, sin = pos_embed(ids)
    return torch.complex(cos[:, ::2].contiguous(), sin[:, ::2].contiguous())[:, None]


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
