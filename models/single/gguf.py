"""GGUF files, by the `gguf` package (an optional extra) and diffusers' functions that unpack its blocks."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from models.errors import LoadError
from models.files.headers import TensorEntry
from models.packed import GgufWeight, Stored

KIND = "GGUF:"
"""In front of a block kind's name where safetensors headers have a dtype."""
_PLAIN = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def gguf_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors by name, shapes as torch has them. Raises: LoadError."""
    entries = {}
    for tensor in _reader(file).tensors:
        kind = tensor.tensor_type.name
        shape = tuple(int(side) for side in reversed(tensor.shape))
        start = int(tensor.data_offset)
        entries[tensor.name] = TensorEntry(_PLAIN.get(kind, KIND + kind), shape, start, start + int(tensor.n_bytes))
    return entries


def gguf_tensors(file: Path, in_memory: bool) -> dict[str, Stored]:
    """All tensors: plain ones, and matrices in blocks. Args: in_memory: in memory of their own, else mapped."""
    return {tensor.name: _stored(tensor, in_memory) for tensor in _reader(file).tensors}


def gguf_on_meta(name: str, entry: TensorEntry) -> Stored:
    """A matrix in blocks without storage, as its header entry describes it. Raises: LoadError for an unknown kind."""
    import gguf

    kind = gguf.GGMLQuantizationType[entry.dtype.removeprefix(KIND)]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    *outer, columns = entry.shape
    blocks = torch.empty((math.prod(outer), columns // block * block_bytes), dtype=torch.uint8, device="meta")
    return packed(name, blocks, kind)


def _stored(tensor: Any, in_memory: bool) -> Stored:
    data = torch.from_numpy(tensor.data.copy() if in_memory else tensor.data)
    kind = tensor.tensor_type.name
    if kind == "BF16":
        return data.view(torch.bfloat16).reshape(tuple(int(side) for side in reversed(tensor.shape)))
    return data if kind in _PLAIN else packed(tensor.name, data, tensor.tensor_type)


def packed(name: str, blocks: torch.Tensor, kind: Any) -> GgufWeight:
    """A matrix from its blocks (rows, bytes), uint8. Raises: LoadError for a kind that diffusers cannot unpack."""
    import gguf
    from diffusers.quantizers.gguf.utils import dequantize_functions

    if kind not in dequantize_functions or blocks.ndim != 2:
        known = ", ".join(sorted(each.name for each in dequantize_functions))
        raise LoadError(f"{name} is packed as {kind.name}, which cannot be unpacked; take a file of {known}.")
    return GgufWeight(blocks, kind, gguf.GGML_QUANT_SIZES[kind], dequantize_functions[kind])


def _reader(file: Path) -> Any:
    label = f"{file.parent.name}/{file.name}"
    if find_spec("gguf") is None:
        raise LoadError(f"{label} is a GGUF file; install what reads it: pip install 'gguf>=0.17'.")
    import gguf

    try:
        return gguf.GGUFReader(file)
    except Exception as exc:
        reason = str(exc).splitlines()[0][:200] if str(exc) else type(exc).__name__
        raise LoadError(f"{label} is damaged or no GGUF file ({reason}); fetch it again.") from exc
