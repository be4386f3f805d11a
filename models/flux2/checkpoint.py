"""Everything of one FLUX.2 checkpoint but its weights, checked in all its parts before they are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel

from models.arguments import read_object
from models.checkpoint import SAFETY, safety_part
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import FLUX2_DEV, FLUX2_KV, FLUX2_PIPELINES, check_folder, is_distilled, part_in
from models.flux2.architectures import SIGMAS
from models.flux2.text_encoder import MISTRAL, QWEN3, Reading, as_far_as_read, text_encoder_part
from models.part import Part, check_words, made, open_part, tokenizer
from models.registry import ModelSpec
from models.single.parts import file_parts, transformer_part

PARTS = ("text_encoder", "vae", "transformer")
"""In the order of loading."""
_KV = re.compile(r"(^|[-_. ])kv([-_. ]|$)", re.IGNORECASE)
"""How the name of a file says what no shape tells: that it was trained to pass references once."""


@dataclass(frozen=True)
class Flux2Checkpoint:
    """What a checkpoint holds besides weights, and the parts that hold them."""

    name: str
    parts: Mapping[str, Part]
    tokenizer: Any
    sigma_config: Mapping[str, Any]
    is_distilled: bool
    passes_references_once: bool
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
        checkpoint = _with_transformer(locate(spec), spec.file)
    if spec.adapter is not None:
        held = replace(checkpoint.parts["transformer"], adapter=(Path(spec.adapter), spec.family))
        checkpoint = replace(checkpoint, parts={**checkpoint.parts, "transformer": held})
    for part in checkpoint.parts.values():
        part.check()
    _check_together(checkpoint.name, checkpoint.parts, checkpoint.tokenizer, checkpoint.reading)
    return checkpoint


def _folder(folder: Path, names: tuple[str, ...]) -> Flux2Checkpoint:
    """Args: names: the parts that are wanted of it."""
    pipeline = check_folder(folder, names, ("tokenizer", "scheduler"), FLUX2_PIPELINES)
    reading = MISTRAL if pipeline == FLUX2_DEV else QWEN3
    parts = {name: _OPEN[name](part_in(folder, name), reading) for name in names}
    processor = None
    if (part_in(folder, SAFETY) / "config.json").is_file():
        parts[SAFETY], processor = safety_part(folder)
    place = part_in(folder, "scheduler")
    scheduler = made(f"{folder.name}/scheduler", lambda: FlowMatchEulerDiscreteScheduler.load_config(place))
    return Flux2Checkpoint(
        folder.name,
        parts,
        tokenizer=_tokenizer(folder.name, part_in(folder, "tokenizer")),
        sigma_config=dict(scheduler),
        is_distilled=is_distilled(read_object(folder / "model_index.json")),
        passes_references_once=pipeline == FLUX2_KV,
        reading=reading,
        image_processor=processor,
    )


def _with_transformer(folder: Path, file: Path) -> Flux2Checkpoint:
    base = _folder(folder, tuple(name for name in PARTS if name != "transformer"))
    before = read_object(part_in(folder, "transformer") / "config.json")
    part, _ = transformer_part(file, before, "flux2")
    passes_once = base.passes_references_once or _KV.search(file.stem) is not None
    return replace(base, parts={**base.parts, "transformer": part}, passes_references_once=passes_once)


def _files(file: Path, spec: ModelSpec) -> Flux2Checkpoint:
    """The checkpoint that a single file begins."""
    parts, tokenizers, _ = file_parts(file, tuple(map(Path, spec.folders)), "flux2")
    parts["text_encoder"] = as_far_as_read(parts["text_encoder"])
    return Flux2Checkpoint(
        file.name,
        parts,
        tokenizer=_tokenizer(file.name, tokenizers["tokenizer"]),
        sigma_config=SIGMAS,
        is_distilled="base" not in spec.variant,
        passes_references_once=any(_KV.search(name) for name in (file.stem, spec.name)),
        reading=QWEN3,
        image_processor=None,
    )


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
    check_words(name, "tokenizer", words, text.vocab_size)
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
