"""Everything of one FLUX.1 checkpoint but its weights, checked in all its parts before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import AutoModelForImageClassification, CLIPTextModel, T5EncoderModel

from models.arguments import read_object
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import OTHERS, check_folder, config, part_in
from models.part import Part, check_words, image_processor, made, open_part, tokenizer
from models.registry import ModelSpec
from models.single.parts import file_parts, sigmas_of, transformer_part

KINDS: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
    "vae": AutoencoderKL,
    "transformer": FluxTransformer2DModel,
}
"""The parts of every FLUX.1 checkpoint and their classes, in the order of loading."""
SAFETY = "safety_checker"
_PIPELINES = {"fill": "FluxFillPipeline", "canny": "FluxControlPipeline", "depth": "FluxControlPipeline"}


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds besides weights, and the parts that hold them."""

    name: str
    pipeline: str
    parts: Mapping[str, Part]
    tokenizer: Any
    tokenizer_2: Any
    sigma_config: Mapping[str, Any]
    image_processor: Any
    """Of the safety checker; None if there is none."""


def open_checkpoint(spec: ModelSpec) -> Checkpoint:
    """A folder, a folder with another transformer, or single files; as announced, and fitting together.

    Raises: LoadError.
    """
    if spec.is_fake:
        raise LoadError(f"--model {spec.source} has no weights: only `fluxserve serve` can do something with it")
    if spec.file is None:
        checkpoint = _folder(locate(spec), tuple(KINDS))
    elif spec.transformer is None:
        checkpoint = _files(spec.file, tuple(map(Path, spec.folders)))
    else:
        checkpoint = _with_transformer(locate(spec), spec.file)
    for part in checkpoint.parts.values():
        part.check()
    _check_together(checkpoint)
    return checkpoint


def _folder(folder: Path, names: tuple[str, ...]) -> Checkpoint:
    """Args: names: the parts that are wanted of it."""
    pipeline = check_folder(folder, names, OTHERS)
    parts, processor = {name: open_part(part_in(folder, name), KINDS[name]) for name in names}, None
    if (part_in(folder, SAFETY) / "config.json").is_file():
        parts[SAFETY], processor = safety_part(folder)
    label, scheduler = f"{folder.name}/scheduler", part_in(folder, "scheduler")
    sigmas = made(label, lambda: FlowMatchEulerDiscreteScheduler.load_config(scheduler))
    return Checkpoint(
        folder.name,
        pipeline,
        parts,
        tokenizer=tokenizer(part_in(folder, "tokenizer")),
        tokenizer_2=tokenizer(part_in(folder, "tokenizer_2")),
        sigma_config=dict(sigmas),
        image_processor=processor,
    )


def _with_transformer(folder: Path, file: Path) -> Checkpoint:
    """A folder's checkpoint with the transformer of a file, and with its noise levels if it is of another kind."""
    base = _folder(folder, tuple(name for name in KINDS if name != "transformer"))
    before = read_object(part_in(folder, "transformer") / "config.json")
    part, variant = transformer_part(file, before)
    is_alike = bool(before.get("guidance_embeds", False)) == bool(part.config["guidance_embeds"])
    return replace(
        base,
        pipeline=_PIPELINES.get(variant, "FluxPipeline"),
        parts={**base.parts, "transformer": part},
        sigma_config=base.sigma_config if is_alike else sigmas_of(variant),
    )


def _files(file: Path, folders: tuple[Path, ...]) -> Checkpoint:
    """The checkpoint that a single file begins."""
    parts, tokenizers, variant = file_parts(file, folders)
    return Checkpoint(
        file.name,
        _PIPELINES.get(variant, "FluxPipeline"),
        parts,
        tokenizer=tokenizer(tokenizers["tokenizer"]),
        tokenizer_2=tokenizer(tokenizers["tokenizer_2"]),
        sigma_config=sigmas_of(variant),
        image_processor=None,
    )


def safety_part(folder: Path) -> tuple[Part, Any]:
    """The checkpoint's own picture checker, in either layout, and what prepares pictures for it.

    CompVis: `safety_checker/` (StableDiffusionSafetyChecker) + `feature_extractor/`.
    Classifier: `safety_checker/` with a `preprocessor_config.json` beside its weights.
    """
    part = part_in(folder, SAFETY)
    is_concepts = "StableDiffusionSafetyChecker" in (config(part).get("architectures") or ())
    processor = image_processor(part_in(folder, "feature_extractor") if is_concepts else part)
    return open_part(part, StableDiffusionSafetyChecker if is_concepts else AutoModelForImageClassification), processor


def _check_together(checkpoint: Checkpoint) -> None:
    """The parts fit one another. Raises: LoadError."""
    name = checkpoint.name
    clip, t5 = checkpoint.parts["text_encoder"].config, checkpoint.parts["text_encoder_2"].config
    transformer, vae = checkpoint.parts["transformer"].config, checkpoint.parts["vae"].config
    check_words(name, "tokenizer", checkpoint.tokenizer, clip.vocab_size)
    check_words(name, "tokenizer_2", checkpoint.tokenizer_2, t5.vocab_size)
    widths = (
        ("text_encoder", clip.hidden_size, "pooled_projection_dim"),
        ("text_encoder_2", t5.d_model, "joint_attention_dim"),
    )
    for part, width, wanted in widths:
        if width != transformer[wanted]:
            raise LoadError(
                f"{name}: the part {part} gives vectors of width {width}, but the transformer takes "
                f"{transformer[wanted]}; take both from one checkpoint."
            )
    channels, latents = transformer["in_channels"], 4 * vae["latent_channels"]
    if channels != latents and checkpoint.pipeline == "FluxPipeline":
        raise LoadError(
            f"{name}: the transformer takes {channels} channels, but text to image has {latents}; "
            "if it is a Fill or Control checkpoint, its model_index.json must say so."
        )
