"""Everything of one FLUX.2 checkpoint but its weights, checked in all its parts before they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

from models.arguments import read_object
from models.checkpoint import SAFETY, safety_part
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import FLUX2_DEV, FLUX2_PIPELINES, check_folder, part_in
from models.flux2.architectures import SIGMAS
from models.flux2.text_encoder import MISTRAL, QWEN3, Reading, as_far_as_read, text_encoder_part
from models.part import Part, made, open_part, tokenizer
from models.registry import ModelSpec
from models.single.parts import file_parts, transformer_part

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
    reading: Reading
    image_processor: Any
    """Of the safety checker; None if there is none."""


def open_flux2(spec: ModelSpec) -> Flux2Checkpoint:
    """A folder of FLUX.2, one with another transformer, or single files; as announced, and fitting together.

    Raises: LoadError.
    """
    if spec.file is None:
        checkpoint = _folder(locate(spec), PARTS)
    elif spec.transformer is None:
        checkpoint = _files(spec.file, spec)
    else:
        checkpoint = _with_transformer(locate(spec, without="transformer"), spec.file)
    for part in checkpoint.parts.values():
        part.check()
    _check_together(checkpoint.name, checkpoint.parts, checkpoint.tokenizer, checkpoint.reading)
    return checkpoint


def _folder(folder: Path, names: tuple[str, ...]) -> Flux2Checkpoint:
    """Args: names: the parts that are wanted of it."""
    is_dev = check_folder(folder, names, ("tokenizer", "scheduler"), FLUX2_PIPELINES) == FLUX2_DEV
    reading = MISTRAL if is_dev else QWEN3
    parts = {name: _OPEN[name](part_in(folder, name), reading) for name in names}
    processor = None
    if (part_in(folder, SAFETY) / "config.json").is_file():
        parts[SAFETY], processor = safety_part(folder)
    place = part_in(folder, "scheduler")
    scheduler = made(f"{folder.name}/scheduler", lambda: FlowMatchEulerDiscreteScheduler.load_config(place))
    # [dev] takes guidance as an input, so it never needs a second forward.
    is_distilled = is_dev or bool(read_object(folder / "model_index.json").get("is_distilled", False))
    words = _tokenizer(folder.name, part_in(folder, "tokenizer"))
    return Flux2Checkpoint(folder.name, parts, words, dict(scheduler), is_distilled, reading, processor)


def _with_transformer(folder: Path, file: Path) -> Flux2Checkpoint:
    base = _folder(folder, tuple(name for name in PARTS if name != "transformer"))
    before = read_object(part_in(folder, "transformer") / "config.json")
    part, _ = transformer_part(file, before, "flux2")
    return replace(base, parts={**base.parts, "transformer": part})


def _files(file: Path, spec: ModelSpec) -> Flux2Checkpoint:
    """The checkpoint that a single file begins."""
    parts, tokenizers, _ = file_parts(file, tuple(map(Path, spec.folders)), "flux2")
    parts["text_encoder"] = as_far_as_read(parts["text_encoder"])
    words = _tokenizer(file.name, tokenizers["tokenizer"])
    return Flux2Checkpoint(file.name, parts, words, SIGMAS, "base" not in spec.variant, QWEN3, None)


_OPEN: dict[str, Callable[[Path, Reading], Part]] = {
    "text_encoder": text_encoder_part,
    "vae": lambda folder, reading: open_part(folder, AutoencoderKLFlux2),
    "transformer": lambda folder, reading: open_part(folder, Flux2Transformer2DModel),
}


def _tokenizer(name: str, folder: Path) -> Any:
    words = tokenizer(folder)
    if not words.chat_template:
        raise LoadError(f"{name}: the part tokenizer has no chat template; take the folder of FLUX.2-klein-4B.")
    return words


def _check_together(name: str, parts: Mapping[str, Part], words: Any, reading: Reading) -> None:
    """The parts fit one another. Raises: LoadError."""
    text, vae, transformer = (parts[part].config for part in PARTS)
    if len(words) > text.vocab_size:
        raise LoadError(
            f"{name}: the part tokenizer has {len(words)} words, but the text encoder's table has {text.vocab_size} "
            "rows; take both from one checkpoint."
        )
    width = len(reading.layers) * text.hidden_size
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
