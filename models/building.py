"""From a part's configuration and tensors to its module: the one place where weights become a model.

diffusers leaves a missing tensor on `meta`, transformers fills it with random numbers, and both pass over tensors that
they have no place for. Here each of these is refused, before a weight is read if the tensors are on `meta`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.construction import CONSTRUCTION
from models.errors import LoadError
from models.files.gguf import KIND as GGUF
from models.files.headers import TensorEntry
from models.files.layouts import described
from models.packed import PackedLinear, PackedWeight, Stored, unpacked
from models.single.gguf import gguf_on_meta

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""What a safetensors header calls them."""

_HARMLESS = "position_ids"
"""Counted numbers that older transformers saved with the weights; today's makes them itself."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """How a part's tensors differ from what its configuration announces."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    mismatched: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.left_over or self.mismatched)

    def __str__(self) -> str:
        complaints = (
            (self.missing, "{} that its config.json announces are missing ({})"),
            (self.left_over, "{} have no place in what its config.json announces ({})"),
            (self.mismatched, "{} have another shape than its config.json announces ({})"),
        )
        return ", and ".join(words.format(len(names), _first(names)) for names, words in complaints if names)


def build(
    label: str, kind: Any, config: Any, tensors: dict[str, Stored], dtype: torch.dtype, keeps_packed: bool = False
) -> nn.Module:
    """The module of class `kind`, with parameters in `dtype` but for those that its class keeps in float32.

    Args:
        label: the part in words, for errors.
        kind: a model class of diffusers or transformers.
        config: what its `load_config` or `config_class` read.
        tensors: by name; taken out one by one, so that what was converted is not held twice. On `meta` nothing is
            read: the module then tells only that it fits.
        keeps_packed: whether packed weights of linear layers stay so; else all become plain.
    Raises: LoadError if a tensor is missing, left over or of another shape.
    """
    keys = list(tensors)
    if issubclass(kind, PreTrainedModel):
        plain = _plain(kind, tensors, dtype)
        with CONSTRUCTION.making():
            module, misfit = _transformers(kind, config, plain, dtype)
    else:
        module, misfit = _diffusers(kind, config, tensors, dtype, keeps_packed)
    if misfit:
        foreign = described(keys)
        looks = f"; it looks like {foreign}" if foreign else "; fetch the checkpoint again"
        raise LoadError(f"{label}: of its tensors {misfit}{looks}.")
    return module


def on_meta(header: Mapping[str, TensorEntry]) -> dict[str, Stored]:
    """Tensors without storage, as a file's header describes them. Raises: LoadError."""
    return {name: _on_meta(name, entry) for name, entry in header.items()}


def _on_meta(name: str, entry: TensorEntry) -> Stored:
    if entry.dtype.startswith(GGUF):
        return gguf_on_meta(name, entry)
    return torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")


def kept_in_float32(kind: Any, name: str, dtype: torch.dtype) -> bool:
    """Whether a class keeps this parameter in float32: T5's `wo` overflows in float16.

    What diffusers' classes name so, diffusers keeps in every dtype.
    """
    kept = list(getattr(kind, "_keep_in_fp32_modules_strict", None) or ())
    if dtype == torch.float16 or not issubclass(kind, PreTrainedModel):
        kept += list(getattr(kind, "_keep_in_fp32_modules", None) or ())
    return bool(kept) and not set(kept).isdisjoint(name.split("."))


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the VAE computes in: FLUX's overflows float16, and who asks for that has no fast bfloat16."""
    return torch.float32 if dtype == torch.float16 else dtype


def _transformers(kind: Any, config: Any, tensors: dict[str, Tensor], dtype: torch.dtype) -> tuple[nn.Module, Misfit]:
    is_meta = any(tensor.is_meta for tensor in tensors.values())
    module, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        local_files_only=True,
        **({"device_map": "meta"} if is_meta else {}),
    )
    left_over = (name for name in report["unexpected_keys"] if not name.endswith(_HARMLESS))
    return module, _misfit(report["missing_keys"], left_over, (name for name, *_ in report["mismatched_keys"]))


def _diffusers(
    kind: Any, config: Any, tensors: dict[str, Stored], dtype: torch.dtype, keeps_packed: bool
) -> tuple[nn.Module, Misfit]:
    with CONSTRUCTION.making(), init_empty_weights():
        module: Any = kind.from_config(config)
    module._fix_state_dict_keys_on_load(tensors)  # names of attention layers in older VAE files
    expected = module.state_dict()
    mismatched = (name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape)
    misfit = _misfit(expected.keys() - tensors.keys(), tensors.keys() - expected.keys(), mismatched)
    if not misfit:
        packed = _packed_layers(module, tensors, dtype) if keeps_packed else set()
        module.load_state_dict(_plain(kind, tensors, dtype), assign=True, strict=not packed)
    return module, misfit


def _packed_layers(module: nn.Module, tensors: dict[str, Stored], dtype: torch.dtype) -> set[str]:
    """Put a PackedLinear where a linear's weight is packed; takes its tensors, and names those layers."""
    layers = {
        name.removesuffix(".weight")
        for name, stored in tensors.items()
        if isinstance(stored, PackedWeight) and isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Linear)
    }
    for layer in layers:
        weight, bias = tensors.pop(f"{layer}.weight"), tensors.pop(f"{layer}.bias", None)
        assert isinstance(weight, PackedWeight)
        module.set_submodule(layer, PackedLinear(weight, None if bias is None else unpacked(bias, dtype).to(dtype)))
    return layers


def _plain(kind: Any, tensors: dict[str, Stored], dtype: torch.dtype) -> dict[str, Tensor]:
    """All of them unpacked, in their dtype; takes them one by one."""
    plain = {}
    for name in list(tensors):
        wanted = torch.float32 if kept_in_float32(kind, name, dtype) else dtype
        tensor = unpacked(tensors.pop(name), wanted)
        plain[name] = tensor.to(wanted) if tensor.is_floating_point() else tensor
    return plain


def _misfit(missing: Iterable[str], left_over: Iterable[str], mismatched: Iterable[str]) -> Misfit:
    return Misfit(tuple(sorted(missing)), tuple(sorted(left_over)), tuple(sorted(mismatched)))


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
