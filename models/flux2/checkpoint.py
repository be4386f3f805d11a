"""Everything of one FLUX.2 checkpoint but its weights, checked in all its parts before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

from models.arguments import read_object
from models.checkpoint import SAFETY, safety_part
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import FLUX2_PIPELINES, check_folder, part_in
from models.flux2.architectures import READ_LAYERS
from models.flux2.text_encoder import text_encoder_part
from models.part import Part, made, open_part, tokenizer
from models.registry import ModelSpec

PARTS = ("text_encoder", "vae", "transformer")
"""In the order of loading."""


@dataclass(frozen=True)
class Flux2Checkpoint:
    """What a checkpoint holds besides weights, and the parts that hold them."""

    name: str
    parts: Mapping[str, Part]
    tokenizer: Any
    sigma_config: Mapping[str, Any]
    is_distilled: bool
    image_processor: Any
    """Of the safety checker; None if there is none."""


def open_flux2(spec: ModelSpec) -> Flux2Checkpoint:
    """A diffusers folder of FLUX.2 [klein], as announced, and fitting together. Raises: LoadError."""
    if spec.file is not None:
        raise LoadError(f"model {spec.name}: FLUX.2 is read from diffusers folders only; give the whole checkpoint.")
    folder = locate(spec)
    check_folder(folder, PARTS, ("tokenizer", "scheduler"), FLUX2_PIPELINES)
    parts = {
        "text_encoder": text_encoder_part(part_in(folder, "text_encoder")),
        "vae": open_part(part_in(folder, "vae"), AutoencoderKLFlux2),
        "transformer": open_part(part_in(folder, "transformer"), Flux2Transformer2DModel),
    }
    processor = None
    if (part_in(folder, SAFETY) / "config.json").is_file():
        parts[SAFETY], processor = safety_part(folder)
    place = part_in(folder, "scheduler")
    scheduler = made(f"{folder.name}/scheduler", lambda: FlowMatchEulerDiscreteScheduler.load_config(place))
    for part in parts.values():
        part.check()
    words = _tokenizer(folder)
    _check_together(folder.name, parts, words)
    is_distilled = bool(read_object(folder / "model_index.json").get("is_distilled", False))
    return Flux2Checkpoint(folder.name, parts, words, dict(scheduler), is_distilled, processor)


def _tokenizer(folder: Path) -> Any:
    words = tokenizer(part_in(folder, "tokenizer"))
    if not words.chat_template:
        raise LoadError(f"{folder.name}: the part tokenizer has no chat template; fetch the checkpoint again.")
    return words


def _check_together(name: str, parts: Mapping[str, Part], words: Any) -> None:
    """The parts fit one another. Raises: LoadError."""
    text, vae, transformer = (parts[part].config for part in PARTS)
    if len(words) > text.vocab_size:
        raise LoadError(
            f"{name}: the part tokenizer has {len(words)} words, but the text encoder's table has {text.vocab_size} "
            "rows; take both from one checkpoint."
        )
    width = len(READ_LAYERS) * text.hidden_size
    if width != transformer["joint_attention_dim"]:
        raise LoadError(
            f"{name}: the part text_encoder gives vectors of width {width}, but the transformer takes "
            f"{transformer['joint_attention_dim']}; take both from one checkpoint."
        )
    latents = 4 * vae["latent_channels"]
    if latents != transformer["in_channels"]:
        raise LoadError(
            f"{name}: the transformer takes {transformer['in_channels']} channels, but the VAE has {latents}; "
            "take both from one checkpoint."
        )
