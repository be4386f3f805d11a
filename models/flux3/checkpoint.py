"""Everything of one FLUX.3 checkpoint but its weights, checked in all its parts before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel

from models.checkpoint import SAFETY, safety_part
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import FLUX3_PIPELINES, check_folder, part_in
from models.flux2.text_encoder import text_encoder_part
from models.flux3.text_encoder import QWEN3_VL
from models.part import Part, check_words, made, open_part, tokenizer
from models.registry import ModelSpec

PARTS = ("text_encoder", "vae", "transformer")
"""In the order of loading."""


@dataclass(frozen=True)
class Flux3Checkpoint:
    """What a checkpoint holds besides weights, and the parts that hold them.

    Args: image_processor: of the safety checker; None if there is none.
    """

    name: str
    parts: Mapping[str, Part]
    tokenizer: Any
    sigma_config: Mapping[str, Any]
    image_processor: Any = None


def open_flux3(spec: ModelSpec) -> Flux3Checkpoint:
    """A folder of FLUX.3, as announced and fitting together. Raises: LoadError."""
    if spec.file is not None:
        raise LoadError(f"model {spec.name}: single files of FLUX.3 are not served; give its diffusers folder.")
    folder = locate(spec)
    check_folder(folder, PARTS, ("tokenizer", "scheduler"), FLUX3_PIPELINES)
    parts = {
        "text_encoder": text_encoder_part(part_in(folder, "text_encoder"), QWEN3_VL),
        "vae": open_part(part_in(folder, "vae"), AutoencoderKLFlux2),
        "transformer": open_part(part_in(folder, "transformer"), Flux3Transformer2DModel),
    }
    processor = None
    if (part_in(folder, SAFETY) / "config.json").is_file():
        parts[SAFETY], processor = safety_part(folder)
    for part in parts.values():
        part.check()
    place = part_in(folder, "scheduler")
    scheduler = made(f"{folder.name}/scheduler", lambda: FlowMatchEulerDiscreteScheduler.load_config(place))
    words = tokenizer(part_in(folder, "tokenizer"))
    if not words.chat_template:
        raise LoadError(f"{folder.name}: the part tokenizer has no chat template; fetch the checkpoint again.")
    _check_together(folder.name, parts, words)
    return Flux3Checkpoint(folder.name, parts, words, dict(scheduler), processor)


def _check_together(name: str, parts: Mapping[str, Part], words: Any) -> None:
    """The parts fit one another. Raises: LoadError."""
    text, vae, transformer = (parts[part].config for part in PARTS)
    text = getattr(text, "text_config", text)
    check_words(name, "tokenizer", words, text.vocab_size)
    width, latents = len(QWEN3_VL.layers) * text.hidden_size, 4 * vae["latent_channels"]
    for what, given, taken in (
        ("text_encoder gives vectors of width", width, transformer["joint_attention_dim"]),
        ("vae gives channels:", latents, transformer["in_channels"]),
        ("vae gives channels:", latents, transformer["cond_in_channels"]),
    ):
        if given != taken:
            raise LoadError(
                f"{name}: the part {what} {given}, but the transformer takes {taken}; take both from one checkpoint."
            )
