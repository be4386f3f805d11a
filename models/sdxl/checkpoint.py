"""Everything of one SDXL checkpoint but its weights, checked in all its parts before they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.arguments import read_object
from models.checkpoint import SAFETY, safety_part
from models.checkpoint_files import locate
from models.errors import LoadError
from models.files.folder import OTHERS, SDXL_PIPELINES, check_folder, part_in
from models.part import Part, check_words, open_part, tokenizer
from models.registry import ModelSpec
from models.sdxl.architectures import EDM, EULER, TRAILING
from models.sdxl.single import file_parts, unet_part
from models.single.companions import SHIPPED
from models.single.header import header_of
from models.single.sdxl import EDM as EDM_SIGN

KINDS: dict[str, Any] = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "vae": AutoencoderKL,
    "unet": UNet2DConditionModel,
}
"""The parts of every SDXL checkpoint and their classes, in the order of loading."""
SCHEDULERS = ("EulerDiscreteScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
"""Those that take one forward a step and no fresh noise: a row's state is a copy of one."""


_V_PREDICTION, _ZERO_SNR = "v_pred", "ztsnr"
"""Names of empty tensors by which files say that they predict velocities, and that their noise begins at no picture."""


@dataclass(frozen=True)
class SdxlCheckpoint:
    """What a checkpoint holds besides weights, and the parts that hold them."""

    name: str
    parts: Mapping[str, Part]
    tokenizer: Any
    tokenizer_2: Any
    scheduler_config: Mapping[str, Any]
    empty_is_zero: bool
    image_processor: Any
    """Of the safety checker; None if there is none."""


def open_sdxl(spec: ModelSpec) -> SdxlCheckpoint:
    """A diffusers folder of SDXL, one with the UNet of a file, or a whole file; as announced, and fitting together.

    Raises: LoadError.
    """
    is_whole_file = spec.file is not None and spec.transformer is None
    checkpoint = _file(spec.file, spec) if spec.file is not None and is_whole_file else _folder(spec)
    for part in checkpoint.parts.values():
        part.check()
    _check_together(checkpoint)
    return checkpoint


def _folder(spec: ModelSpec) -> SdxlCheckpoint:
    folder = locate(spec)
    own = tuple(name for name in KINDS if name != spec.replaced)
    check_folder(folder, own, OTHERS, SDXL_PIPELINES)
    parts, processor = {name: open_part(part_in(folder, name), KINDS[name]) for name in own}, None
    if spec.file is not None:
        before = UNet2DConditionModel.load_config(part_in(folder, "unet"), local_files_only=True)
        parts["unet"] = unet_part(spec.file, before)
    if (part_in(folder, SAFETY) / "config.json").is_file():
        parts[SAFETY], processor = safety_part(folder)
    return SdxlCheckpoint(
        folder.name,
        parts,
        tokenizer=tokenizer(part_in(folder, "tokenizer")),
        tokenizer_2=tokenizer(part_in(folder, "tokenizer_2")),
        scheduler_config=_scheduler(folder, spec),
        empty_is_zero=bool(read_object(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)),
        image_processor=processor,
    )


def _file(file: Path, spec: ModelSpec) -> SdxlCheckpoint:
    """A whole checkpoint in one file, with the tokenizers that all of them share."""
    words, words_2 = tokenizer(SHIPPED / "clip"), tokenizer(SHIPPED / "clip")
    words_2.pad_token = "!"  # as the second encoder was trained
    return SdxlCheckpoint(
        file.name,
        file_parts(file),
        tokenizer=words,
        tokenizer_2=words_2,
        scheduler_config=_schedule_of(file, spec),
        empty_is_zero=True,
        image_processor=None,
    )


def _schedule_of(file: Path, spec: ModelSpec) -> dict[str, Any]:
    """The schedule that a file was trained for: its name and a few names in it tell."""
    if spec.variant == "lightning":
        predicts_picture = "1step" in file.name.lower()
        return TRAILING | ({"prediction_type": "sample"} if predicts_picture else {})
    names = header_of(file)
    if EDM_SIGN in names:
        return EDM
    config = EULER | ({"prediction_type": "v_prediction"} if _V_PREDICTION in names else {})
    return config | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if _ZERO_SNR in names else {})


def _scheduler(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """The schedule that the UNet was trained for. Raises: LoadError for one that no row could keep a copy of."""
    if spec.file is not None and spec.variant == "lightning":
        return _schedule_of(spec.file, spec)
    config = read_object(part_in(folder, "scheduler") / "scheduler_config.json")
    if config.get("_class_name") not in SCHEDULERS:
        raise LoadError(
            f"{folder.name}: the scheduler {str(config.get('_class_name'))[:80]} is not served; "
            f"name one of {', '.join(SCHEDULERS)} in scheduler/scheduler_config.json."
        )
    return config


def _check_together(checkpoint: SdxlCheckpoint) -> None:
    """The parts fit one another. Raises: LoadError."""
    name = checkpoint.name
    clip, clip_2, vae, unet = (checkpoint.parts[part].config for part in KINDS)
    check_words(name, "tokenizer", checkpoint.tokenizer, clip.vocab_size)
    check_words(name, "tokenizer_2", checkpoint.tokenizer_2, clip_2.vocab_size)
    embedded = 6 * (unet.get("addition_time_embed_dim") or 0) + clip_2.projection_dim
    for what, given, taken in (
        ("the text encoders together give vectors of width", clip.hidden_size + clip_2.hidden_size,
         unet.get("cross_attention_dim")),
        ("text_encoder_2 and the size of a picture make a vector of width", embedded,
         unet.get("projection_class_embeddings_input_dim")),
        ("the VAE's latents have channels:", vae["latent_channels"], unet["in_channels"]),
    ):  # fmt: skip
        if given != taken:
            raise LoadError(f"{name}: {what} {given}, but the UNet takes {taken}; take both from one checkpoint.")
    if unet.get("time_cond_proj_dim") is not None:
        raise LoadError(f"{name}: a UNet that takes guidance as an input (LCM) is not served.")
