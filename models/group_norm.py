"""A VAE's group norms with the SiLU after them in one pass, where a kernel for it runs.

torch's group norm knows no channels-last layout on CUDA: it turns every picture around and back.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

Kernel = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
"""(x (N, C, H, W) channels last, weight (C,), bias (C,), groups, eps) -> SiLU of the group norm, like x."""


class GroupNormSilu(nn.Module):
    """SiLU(GroupNorm(x)). Args: norm: whose weights it takes."""

    def __init__(self, norm: nn.GroupNorm, kernel: Kernel) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.eps = norm.weight, norm.bias, norm.num_groups, norm.eps
        self._kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        if takes(x):
            return self._kernel(x, self.weight, self.bias, self.groups, self.eps)
        return exact(x, self.weight, self.bias, self.groups, self.eps)


def takes(x: Tensor) -> bool:
    """Whether the kernel does: channels last, and a power of two of them."""
    channels = x.shape[1]
    return x.is_contiguous(memory_format=torch.channels_last) and channels & (channels - 1) == 0


def exact(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """The same by torch."""
    return functional.silu(functional.group_norm(x, groups, weight, bias, eps))


def fuse_norms(vae: AutoencoderKL, kernel: Kernel) -> None:
    """Put a GroupNormSilu in place of every such pair of the VAE's convolutional blocks, in place.

    What is fused already stays as it is: checkpoints share their VAE.
    """
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D) and isinstance(block.nonlinearity, nn.SiLU):
            block.norm1, block.norm2 = GroupNormSilu(block.norm1, kernel), GroupNormSilu(block.norm2, kernel)
            block.nonlinearity = nn.Identity()
    for part in (vae.encoder, vae.decoder):
        if isinstance(part.conv_act, nn.SiLU):
            part.conv_norm_out, part.conv_act = GroupNormSilu(part.conv_norm_out, kernel), nn.Identity()


def checked_kernel(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The Triton kernel, if it runs on this device and is as near to float64 as torch's own."""
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn((1, 64, 33, 7), generator=generator, device=device).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn((2, 64), generator=generator, device=device).to(dtype)
    try:
        kernel: Kernel = import_module("models.group_norm_kernel").group_norm_silu
        ours = kernel(x, weight, bias, 32, 1e-6)
    except Exception:  # no compiler, no triton: torch can do the same work
        return None
    reference = exact(x.double(), weight.double(), bias.double(), 32, 1e-6)
    allowed = 2 * float((exact(x, weight, bias, 32, 1e-6) - reference).abs().max()) + 16 * torch.finfo(dtype).eps
    return kernel if float((ours - reference).abs().max()) <= allowed else None
