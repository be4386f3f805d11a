"""A complete SDXL of random weights as diffusers writes it."""

from __future__ import annotations

from pathlib import Path

import torch

from models.accelerator import CpuAccelerator
from models.loading import load
from models.registry import TINY_SDXL, ModelSpec
from models.sdxl.components import SdxlComponents


def save_sdxl(folder: Path, spec: ModelSpec = TINY_SDXL) -> Path:
    """Returns the folder."""
    components: SdxlComponents = load(spec, CpuAccelerator())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (components.unet, components.vae):
            for parameter in part.parameters():
                if parameter.ndim >= 2:  # loud enough that pictures are not flat
                    parameter.normal_(0.0, 0.2, generator=generator)
    components.pipeline().save_pretrained(folder)
    return folder
