"""The VAE's group norm and SiLU in one kernel, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from models.group_norm import checked_kernel, exact, fuse_norms
from models.group_norm_kernel import group_norm_silu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("shape", [(1, 64, 5, 3), (2, 32, 40, 33), (1, 128, 17, 9)])
def test_any_picture_equals_torch(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape, device=DEVICE) * 3 + 1).to(dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1], device=DEVICE).to(dtype)
    ours, theirs = group_norm_silu(x, weight, bias, 32, 1e-6), exact(x, weight, bias, 32, 1e-6)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours.float(), theirs.float(), atol=tolerance, rtol=tolerance)


def test_a_whole_vae_equals_itself() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        latent_channels=4,
    ).to(DEVICE, memory_format=torch.channels_last)
    fused = copy.deepcopy(vae)
    kernel = checked_kernel(DEVICE, torch.float32)
    assert kernel is group_norm_silu
    for _ in "a checkpoint", "another that shares its VAE":
        fuse_norms(fused, kernel)
    picture = torch.rand(1, 3, 16, 24, device=DEVICE).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        latents = vae.encode(picture).latent_dist.mean
        assert torch.allclose(fused.encode(picture).latent_dist.mean, latents, atol=1e-4)
        assert torch.allclose(fused.decode(latents).sample, vae.decode(latents).sample, atol=1e-4)
