"""Tensors of GGUF files, unpacked by diffusers' functions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import T5Tokenizer

from models.errors import LoadError
from models.files.gguf import KIND, PLAIN, reader, shape_of
from models.files.headers import TensorEntry
from models.packed import GgufWeight, Stored

_WORDS = "tokenizer.ggml."
"""In front of the fields of a vocabulary."""


def gguf_mapped(file: Path) -> dict[str, Stored]:
    """All tensors, mapped: plain ones, and matrices in blocks."""
    found = reader(file)
    return {tensor.name: _mapped(tensor, shape_of(found, tensor)) for tensor in found.tensors}


def gguf_on_meta(name: str, entry: TensorEntry) -> Stored:
    """A matrix in blocks without storage, as its header entry describes it. Raises: LoadError for an unknown kind."""
    return gguf_matrix(name, entry, torch.empty(entry.stop - entry.start, dtype=torch.uint8, device="meta"))


def gguf_matrix(name: str, entry: TensorEntry, raw: torch.Tensor) -> Stored:
    """A matrix in blocks from its bytes, as they lie in the file. Raises: LoadError for an unknown kind."""
    import gguf

    return packed(name, raw, gguf.GGMLQuantizationType[entry.dtype.removeprefix(KIND)], entry.shape)


def t5_tokenizer(file: Path) -> T5Tokenizer:
    """T5's tokenizer from the vocabulary beside its weights, as llama.cpp writes it. Raises: KeyError without one."""
    found = {name: field.contents() for name, field in reader(file).fields.items() if name.startswith(_WORDS)}
    vocabulary = list(zip(found[f"{_WORDS}tokens"], map(float, found[f"{_WORDS}scores"]), strict=True))
    charsmap = found.get(f"{_WORDS}precompiled_charsmap")
    return T5Tokenizer(vocabulary, _spm_precompiled_charsmap=bytes(charsmap) if charsmap else None, extra_ids=0)


def _mapped(tensor: Any, shape: tuple[int, ...]) -> Stored:
    data = torch.from_numpy(tensor.data)
    kind = tensor.tensor_type.name
    if kind == "BF16":
        return data.view(torch.bfloat16).reshape(shape)
    return data.reshape(shape) if kind in PLAIN else packed(tensor.name, data, tensor.tensor_type, shape)


def packed(name: str, raw: torch.Tensor, kind: Any, shape: tuple[int, ...]) -> GgufWeight:
    """A matrix, or a convolution, from its blocks, uint8. Raises: LoadError for a kind that diffusers cannot unpack."""
    import gguf
    from diffusers.quantizers.gguf.utils import dequantize_functions

    if kind not in dequantize_functions or len(shape) < 2:
        known = ", ".join(sorted(each.name for each in dequantize_functions))
        raise LoadError(f"{name} is packed as {kind.name}, which cannot be unpacked; take a file of {known}.")
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows = math.prod(shape[:-1]) if shape[-1] % block == 0 else raw.numel() // block_bytes
    return GgufWeight(raw.reshape(rows, -1), kind, (block, block_bytes), dequantize_functions[kind], shape)
