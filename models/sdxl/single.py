"""SDXL out of single files: the parts of a whole checkpoint, or a UNet alone, by diffusers' own converters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    LDM_UNET_KEY,
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from models.building import on_meta
from models.packed import PackedWeight, Stored
from models.part import Convert, Part, in_stored_forms, made
from models.sdxl.configs import clip_2_config, unet_config, vae_config
from models.single.configs import Shapes, clip_config
from models.single.header import header_of
from models.single.layout import diffusers_vae
from models.single.parts import SPARE
from models.single.sdxl import EDM, unet_prefix, whole_prefixes

_OPEN_CLIP = frozenset(DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"].values())


def file_parts(file: Path) -> dict[str, Part]:
    """Every part of a whole checkpoint. Raises: LoadError naming what is missing."""
    is_edm = EDM in header_of(file)
    kinds: dict[str, tuple[Any, Callable[[Shapes], Any]]] = {
        "unet": (UNet2DConditionModel, unet_config),
        "vae": (AutoencoderKL, partial(vae_config, is_edm=is_edm)),
        "text_encoder": (CLIPTextModel, lambda shapes: CLIPTextConfig(**clip_config(shapes))),
        "text_encoder_2": (CLIPTextModelWithProjection, lambda shapes: CLIPTextConfig(**clip_2_config(shapes))),
    }
    prefixes = whole_prefixes(file)
    return {name: _part(name, file, prefixes[name], *kinds[name]) for name in kinds}


def unet_part(file: Path, config: Mapping[str, Any]) -> Part:
    """A file's UNet, by diffusers' names or in the layout of latent diffusion. Args: config: of the one it replaces."""
    header = header_of(file)
    prefix = unet_prefix(header)
    if prefix is None:
        return Part(file.name, UNet2DConditionModel, dict(config), (file,), header)
    return _part("unet", file, prefix, UNet2DConditionModel, lambda shapes: dict(config))


def _part(name: str, file: Path, prefix: str, kind: Any, configured: Callable[[Shapes], Any]) -> Part:
    label = f"{file.parent.name}/{file.name}, {name.replace('_', ' ')}"
    own = {key: entry for key, entry in header_of(file).items() if key.startswith(prefix) and not key.endswith(SPARE)}

    def make() -> Part:
        tensors = {key.removeprefix(prefix): stored for key, stored in on_meta(own).items()}
        shapes = {key: tuple(stored.shape) for key, stored in in_stored_forms(tensors, label).items()}
        config = configured(shapes)
        return Part(label, kind, config, (file,), own, prefix, _converter(name, config))

    part: Part = made(label, make)
    return part


def _converter(name: str, config: Any) -> Convert:
    """From the file's names, without their prefix, to the module's; names that are not known stay as they are."""
    if name == "unet":
        return partial(_unet, config=config)
    if name == "vae":
        return partial(diffusers_vae, config=config)
    return _open_clip if name == "text_encoder_2" else dict


def _unet(tensors: dict[str, Stored], config: Mapping[str, Any]) -> dict[str, Stored]:
    named = {LDM_UNET_KEY + name: stored for name, stored in tensors.items()}
    converted: dict[str, Stored] = convert_ldm_unet_checkpoint(named, config)
    placed = {id(stored) for stored in converted.values()}
    return converted | {name: stored for name, stored in tensors.items() if id(stored) not in placed}


def _open_clip(tensors: dict[str, Stored]) -> dict[str, Stored]:
    plain = {n: t.unpack(torch.float32) if isinstance(t, PackedWeight) else t for n, t in tensors.items()}
    converted: dict[str, Stored] = convert_open_clip_checkpoint(None, plain, prefix="")
    return converted | {n: t for n, t in plain.items() if not n.startswith("transformer.") and n not in _OPEN_CLIP}
