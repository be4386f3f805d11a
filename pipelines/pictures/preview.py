"""Small pictures of unfinished latents: a linear map from latent channels to RGB, fitted to the VAE's decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CELLS = 16
_SAMPLES = 4


class LatentPreview:
    """Latent channels times a (channels + 1, 3) matrix give one RGB pixel a latent cell.

    Args: decode: (B, channels, H, W) latents, as the transformer sees them, to pictures (B, 3, ...) about in [-1, 1].
    """

    def __init__(self, decode: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> None:
        self._matrix = _fit(decode, channels, device)

    def render(self, latents: Tensor) -> Tensor:
        """Latents (C, H, W) to uint8 (H, W, 3)."""
        cells = latents.permute(1, 2, 0).float()
        rgb = cells @ self._matrix[:-1] + self._matrix[-1]
        return ((rgb * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


@torch.inference_mode()
def _fit(decode: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> Tensor:
    """Least squares of decoded random latents, averaged over each cell, on their channels.

    The samples are smooth (a coarse grid, enlarged), as latents of pictures are; white noise decodes to grey.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((_SAMPLES, channels, _CELLS // 4, _CELLS // 4), generator=generator)
    latents = torch.nn.functional.interpolate(coarse, size=(_CELLS, _CELLS), mode="bilinear", align_corners=False)
    decoded = decode(latents.to(device)).float()
    factor = decoded.shape[-1] // _CELLS
    targets = torch.nn.functional.avg_pool2d(decoded, factor).permute(0, 2, 3, 1).reshape(-1, 3)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, channels).to(device)
    inputs = torch.cat((inputs, torch.ones_like(inputs[:, :1])), dim=1)
    # Normal equations with a small ridge term: a decoder may ignore some channels.
    gram = inputs.T @ inputs + 1e-3 * torch.eye(channels + 1, device=device)
    matrix: Tensor = torch.linalg.solve(gram, inputs.T @ targets)
    return matrix
