"""A LoRA file as pairs of matrices by layer, whatever trainer wrote it; diffusers' own converter knows the layouts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import FluxLoraLoaderMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.adapter_files import AdapterError, check_adapter_file, metadata_of, shown
from models.adapters import flux2
from models.adapters.lineage import NAMES, foreign_key, width_of
from models.registry import Family


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a LoRA adds to one linear: x down^T up^T. `down`: (rank, in_features), `up`: (out_features, rank)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """One file's matrices by the name of the linear in diffusers' transformer and in the CLIP text encoder.

    On the CPU, in the file's dtype or float32, each with its own alpha / rank worked in.
    """

    transformer: dict[str, LowRank]
    text_encoder: dict[str, LowRank]


_DOWN = (".lora_A.weight", ".lora.down.weight", ".lora_linear_layer.down.weight", ".lora_down.weight")
_UP = (".lora_B.weight", ".lora.up.weight", ".lora_linear_layer.up.weight", ".lora_up.weight")
_ALPHA = ".alpha"
_LINEAR1 = re.compile(r"lora_unet_single_blocks_(\d+)_linear1")
_LOST = (
    ("t5xxl", "changes the T5 text encoder"),
    ("lora_te3_", "changes the T5 text encoder"),
    ("diff_b", "changes biases"),
    (".diff", "changes norms"),
    ("position_embedding", "changes position embeddings"),
    ("text_projection", "changes the text projection"),
    ("lora_bias", "changes biases"),
    (".bias", "changes biases"),
)
"""Parts of keys that the converter would drop without a word."""
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "diffusion_model.", "text_encoders.clip_l.transformer.")
_KOHYA_VARIANTS = (_KOHYA, ("lora_transformer_", "lora_te1_"), ("transformer.",))
"""How keys with kohya's endings begin, one way a file; beside them the converter drops all others."""


def read_adapter(file: Path, family: Family = "flux", checks_values: bool = True) -> AdapterWeights:
    """Read and convert one LoRA of a model family. Raises: AdapterError with one sentence; OSError.

    Args: checks_values: whether every number is looked at; without, most of a large file is not read yet.
    """
    check_adapter_file(file)
    training = _training(metadata_of(file))
    try:
        tensors = load_file(file)
    except SafetensorError as exc:
        raise AdapterError("its header is damaged: safetensors cannot read it") from exc
    if checks_values:
        _check_values(tensors)
    if (foreign := foreign_key(tensors, family)) is not None:
        key, made_for = foreign
        raise AdapterError(f"it was made for {NAMES[made_for]}, not for {NAMES[family]}, by its key {shown(key)}")
    if family == "flux":
        _check_beginnings(tensors)
    try:
        converted, alphas = (flux2.converted(tensors), {}) if family == "flux2" else _converted(tensors)
    except Exception as exc:  # a foreign file meets asserts, missing keys and arithmetic on shapes in the converter
        raise AdapterError(_unreadable(exc, tensors, NAMES[family])) from exc
    return _paired(converted, alphas, training)


def check_fit(name: str, part: LowRank, shape: Sequence[int] | None) -> None:
    """A model's layer takes a pair of matrices. Args: shape: (outputs, inputs) of the layer; None if there is none.

    Raises: AdapterError.
    """
    if shape is None:
        raise AdapterError(f"this model has no layer {shown(name)}, which it changes")
    inputs, outputs = part.down.shape[1], part.up.shape[0]
    if (outputs, inputs) != tuple(shape):
        raise AdapterError(
            f"its matrices for {shown(name)} take {inputs} values and give {outputs}, "
            f"where this model's layer takes {shape[1]} and gives {shape[0]}"
            f"{width_of(name, inputs) if inputs != shape[1] else ''}"
        )


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        for part, what in _LOST:
            if part in key and bool(tensor.any()):
                raise AdapterError(f"its key {shown(key)} {what}, which is not served")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"its key {shown(key)} holds values that are not numbers")


def _check_beginnings(tensors: Mapping[str, Tensor]) -> None:
    """Of a file with kohya's endings, whose keys must all be of one variant."""
    keys = [_common_name(key) for key in tensors]
    if any(".lora_down.weight" in key for key in keys):
        strays = [[key for key in keys if not key.startswith(variant)] for variant in _KOHYA_VARIANTS]
        if fewest := min(strays, key=len):
            raise AdapterError(f"no layer of FLUX.1 fits its key {shown(fewest[0])}")


def _converted(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Keys as diffusers names them, and the alphas that are not worked in yet by layer. Raises: anything."""
    named, joined = _split_joined({_common_name(key): tensor for key, tensor in tensors.items()})
    if not named:
        return joined, {}
    converted, alphas, _ = FluxLoraLoaderMixin.lora_state_dict(named, return_alphas=True, return_lora_metadata=True)
    return converted | joined, {key.removesuffix(_ALPHA): float(alpha) for key, alpha in (alphas or {}).items()}


def _unreadable(error: Exception, tensors: Mapping[str, Tensor], model: str) -> str:
    """The key that the converter stumbled over, if it says which."""
    named = next((key for key in tensors if key in str(error) or _common_name(key) in str(error)), None)
    if named is None:
        return f"its keys are in no layout of {model} that is known; the first is {shown(next(iter(tensors)))}"
    return f"no layer of {model} fits its key {shown(named)}"


def _common_name(key: str) -> str:
    """Spellings that the converter does not know, as ones that it does."""
    if key.startswith("diffusion_model."):  # BFL's names with PEFT's suffixes
        return key.replace(".lora_A.", ".lora_down.").replace(".lora_B.", ".lora_up.")
    if key.startswith(("transformer_blocks.", "single_transformer_blocks.")):
        return f"transformer.{key}"
    return key


def _split_joined(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Take kohya's joined first linear of single blocks out where its width is not FLUX.1's, and split it.

    The converter has the widths of FLUX.1 written in it. Returns: what is left, what was split, both by key.
    """
    rest = dict(tensors)
    split: dict[str, Tensor] = {}
    for name in [key.removesuffix(".lora_down.weight") for key in tensors if key.endswith(".lora_down.weight")]:
        plain = name.replace("diffusion_model.", "lora_unet_").replace(".", "_")
        match, up = _LINEAR1.fullmatch(plain), tensors.get(f"{name}.lora_up.weight")
        if match is None or up is None or up.ndim != 2 or up.shape[0] in (0, 3072 * 7) or up.shape[0] % 7:
            continue
        down = rest.pop(f"{name}.lora_down.weight")
        alpha = rest.pop(f"{name}{_ALPHA}", None)
        factor = 1.0 if alpha is None else float(alpha) / max(1, down.shape[0])
        width = rest.pop(f"{name}.lora_up.weight").shape[0] // 7
        block = f"transformer.single_transformer_blocks.{match[1]}"
        names = (f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp")
        for target, part in zip(names, up.split((width, width, width, 4 * width)), strict=True):
            split |= {f"{target}.lora_A.weight": down, f"{target}.lora_B.weight": part.float() * factor}
    return rest, split


def _training(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What PEFT wrote down about the training, by name under `transformer.` and `text_encoder.`."""
    try:
        found = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, TypeError, RecursionError) as exc:
        raise AdapterError("its lora_adapter_metadata is not JSON") from exc
    if not isinstance(found, dict):
        raise AdapterError("its lora_adapter_metadata is not a table")
    for part in ("transformer", "text_encoder"):
        if found.get(f"{part}.use_dora"):
            raise AdapterError("it is a DoRA, whose magnitudes need the merged weights; plain LoRAs are served")
        if not isinstance(found.get(f"{part}.alpha_pattern") or {}, dict):
            raise AdapterError(f"its {part}.alpha_pattern is not a table")
    return found


def _paired(tensors: Mapping[str, Tensor], alphas: Mapping[str, float], training: Mapping[str, Any]) -> AdapterWeights:
    downs, ups = _by_layer(tensors, _DOWN), _by_layer(tensors, _UP)
    if stray := next((key for key in tensors if not key.endswith((*_DOWN, *_UP))), None):
        raise AdapterError(f"its key {shown(stray)} is no part of a LoRA that is known")
    if lone := next(iter(downs.keys() ^ ups.keys()), None):
        raise AdapterError(f"only one of the two matrices for {shown(lone)} is there")
    found = AdapterWeights({}, {})
    for layer, down in downs.items():
        is_text = layer.startswith("text_encoder.")
        name = layer.removeprefix("text_encoder.").removeprefix("transformer.")
        up = ups[layer]
        if down.ndim != 2 or up.ndim != 2 or not 0 < down.shape[0] == up.shape[1]:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise AdapterError(f"the matrices for {shown(layer)} have shapes {shapes}, which are not one LoRA's")
        factor = _factor(layer, down.shape[0], alphas, training)
        (found.text_encoder if is_text else found.transformer)[name] = LowRank(
            down, up if factor == 1 else up.float() * factor
        )
    return found


def _by_layer(tensors: Mapping[str, Tensor], endings: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        key.removesuffix(ending): tensor
        for key, tensor in tensors.items()
        for ending in endings
        if key.endswith(ending)
    }


def _factor(layer: str, rank: int, alphas: Mapping[str, float], training: Mapping[str, Any]) -> float:
    """alpha / rank: from the file's own alpha, else from what PEFT wrote, else 1."""
    part, _, name = layer.partition(".")
    alpha = alphas.get(layer)
    if alpha is None:
        patterns = training.get(f"{part}.alpha_pattern") or {}
        own = [value for pattern, value in patterns.items() if _is_for(str(pattern), name)] if patterns else []
        alpha = own[0] if own else training.get(f"{part}.lora_alpha", rank)
    divisor = math.sqrt(rank) if training.get(f"{part}.use_rslora") else rank
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"the alpha of {shown(layer)} is not a number")
    return float(alpha) / divisor


def _is_for(pattern: str, name: str) -> bool:
    """PEFT's patterns as the plain names that they are in practice: never run as expressions, they come from users."""
    plain = pattern.removeprefix("^").removesuffix("$").replace("\\", "")
    return name == plain or name.endswith(f".{plain}")
