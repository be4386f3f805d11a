"""Write flux2-shapes as a stock Flux2KleinPipeline folder, with flux-shapes' codec in FLUX.2's form."""

import json
import os
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from safetensors.torch import load_file, save_file

from models.flux2.architectures import SIGMAS
from models.shapes.export import link_parts, size_of
from models.shapes.flux2.text import KleinText, as_stock

_STEM = "diffusion_pytorch_model"
_OWN = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast")
"""Of FLUX.1's VAE: what FLUX.2's keeps as running statistics, or does not have."""


def export_klein(folder: Path, transformer: Flux2Transformer2DModel, text: KleinText, base: Path) -> int:
    """Save everything as Flux2KleinPipeline opens it; returns the folder's size in bytes.

    Transformer and VAE are stored in bfloat16, the text encoder in float32, as in the folder of flux-shapes and for
    its reason. Args: base: that folder, whose codec and safety classifier it shares.
    """
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**SIGMAS),
        vae=codec_of(base).to(torch.bfloat16),
        text_encoder=as_stock(text.encoder),
        tokenizer=text.tokenizer,
        transformer=transformer.to(torch.bfloat16),
        is_distilled=True,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    link_parts(folder, base, ("safety_checker",))
    share_codec(folder / "vae", base / "vae")
    return size_of(folder)


def share_codec(part: Path, base: Path) -> None:
    """Leave of a saved VAE the statistics only; the networks become a shard that is a link into FLUX.1's `base`."""
    whole = part / f"{_STEM}.safetensors"
    state, shared = load_file(whole), base / whole.name
    linked, own = (f"{_STEM}-0000{i}-of-00002.safetensors" for i in (1, 2))
    known = set(load_file(shared))
    whole.unlink()
    (part / linked).unlink(missing_ok=True)
    (part / linked).symlink_to(os.path.relpath(shared, part))
    save_file({name: value for name, value in state.items() if name not in known}, part / own, {"format": "pt"})
    index = {
        "metadata": {"total_size": sum(value.nbytes for value in state.values())},
        "weight_map": {name: linked if name in known else own for name in sorted(state)},
    }
    (part / f"{whole.name}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def codec_of(base: Path) -> AutoencoderKLFlux2:
    """The VAE of a FLUX.1 folder as FLUX.2 has it: the same networks, its scale and shift as running statistics."""
    old = AutoencoderKL.from_pretrained(base / "vae")
    config = {name: value for name, value in old.config.items() if not name.startswith("_") and name not in _OWN}
    new = AutoencoderKLFlux2(**config)
    new.load_state_dict(old.state_dict(), strict=False)
    new.bn.running_mean.fill_(old.config.shift_factor)
    new.bn.running_var.fill_(old.config.scaling_factor**-2 - new.config.batch_norm_eps)
    return new.eval()
