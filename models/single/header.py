"""The tensors of a single file by name, whatever its container."""

from __future__ import annotations

import math
from pathlib import Path

from models.errors import LoadError
from models.files.gguf import gguf_header
from models.files.headers import TensorEntry, read_header
from models.single.contents import Header

PACKED = ("F8", "I8", "GGUF:")
"""How the dtypes of weights begin that stay on the device as they are stored."""


def loaded_bytes(entry: TensorEntry, itemsize: int = 2, keeps_packed: bool = True) -> int:
    """What a tensor takes once it is loaded. Args: itemsize: bytes of a number that is not packed."""
    if keeps_packed and entry.dtype.startswith(PACKED):
        return entry.stop - entry.start
    if entry.dtype == "U8":  # two weights in a byte (`models.nf4`), or their scales
        return (entry.stop - entry.start) * (1 if keeps_packed else 2 * itemsize)
    return math.prod(entry.shape) * itemsize


def header_of(file: Path) -> Header:
    """Raises: LoadError for a pickle, and for what is damaged."""
    if file.suffix == ".gguf":
        return gguf_header(file)
    if file.suffix in (".safetensors", ".sft"):
        return read_header(file)
    raise LoadError(
        f"{file.name} is no safetensors or GGUF file; pickled weights are never loaded, take the safetensors form."
    )
