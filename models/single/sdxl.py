"""What of SDXL a single file holds, in the layout of latent diffusion that model sites publish. No torch."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from models.errors import LoadError
from models.registry import Variant
from models.single.header import header_of

UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
_UNET = ("input_blocks.0.0.weight", "label_emb.0.0.weight")
"""The second tells SDXL from Stable Diffusion 1 and 2."""
_BESIDE = {
    "text_encoder": ("conditioner.embedders.0.transformer.", "text_model.embeddings.position_embedding.weight"),
    "text_encoder_2": ("conditioner.embedders.1.model.", "ln_final.weight"),
    "vae": ("first_stage_model.", "decoder.conv_in.weight"),
}
"""By part: the prefix of its names, and the name that tells."""
_WORDS = {"text_encoder": "CLIP L", "text_encoder_2": "CLIP G", "vae": "VAE"}
EDM = "edm_mean"
"""What only checkpoints of Playground v2.5's schedule have: the mean of their latents."""
_STEPS = re.compile(r"(\d+)[-_ ]?step")
_LIGHTNINGS = {1: "1step_unet_x0", 2: "2step_unet", 4: "4step_unet", 8: "8step_unet"}


def unet_prefix(names: Collection[str]) -> str | None:
    """In front of a UNet's names in this layout; None if the file has no UNet of SDXL in it."""
    return next((prefix for prefix in UNET_PREFIXES if all(prefix + sign in names for sign in _UNET)), None)


def sdxl_variant(names: Collection[str], file_name: str) -> Variant | None:
    """What a checkpoint of SDXL is for; None if it is none. That it was distilled to few steps, only its name says."""
    if unet_prefix(names) is None:
        return None
    if EDM in names:
        return "playground"
    return "lightning" if "lightning" in file_name.lower() else "sdxl"


def lightning_steps(file_name: str) -> int | None:
    """The number of steps in a name such as sdxl_lightning_4step_unet."""
    found = _STEPS.search(file_name.lower())
    return int(found[1]) or None if found else None


def lightning_file(steps: int) -> str | None:
    """The file that ByteDance/SDXL-Lightning has for this number of steps; None if it has none."""
    return f"sdxl_lightning_{_LIGHTNINGS[steps]}.safetensors" if steps in _LIGHTNINGS else None


def whole_prefixes(file: Path) -> dict[str, str]:
    """In front of the names of every part. Raises: LoadError naming what a file lacks to be a whole checkpoint."""
    names = header_of(file)
    prefix = unet_prefix(names)
    if prefix is None:
        raise LoadError(f"{file.name} holds no UNet of SDXL in the layout of latent diffusion.")
    missing = [_WORDS[part] for part, (before, sign) in _BESIDE.items() if before + sign not in names]
    if missing:
        raise LoadError(
            f"{file.name} holds SDXL's UNet without its {', '.join(missing)}; "
            f"take the rest from a folder: --model SDXL --transformer {file.name}."
        )
    return {"unet": prefix} | {part: before for part, (before, _) in _BESIDE.items()}
