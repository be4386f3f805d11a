"""The tensors of a single file by name, whatever its container."""

from __future__ import annotations

import math
from pathlib import Path

from models.files.gguf import gguf_header, is_gguf
from models.files.headers import TensorEntry, read_header
from models.single.contents import Header

PACKED = ("F8", "I8", "GGUF:")
"""How the dtypes of weights begin that stay on the device as they are stored."""


def is_packed(entry: TensorEntry) -> bool:
    """Whether a tensor is, or goes with, weights that stay as they are stored."""
    return entry.dtype.startswith(PACKED) or entry.dtype == "U8"


def loaded_bytes(entry: TensorEntry, itemsize: int = 2, keeps_packed: bool = True) -> int:
    """What a tensor takes once it is loaded. Args: itemsize: bytes of a number that is not packed."""
    if keeps_packed and entry.dtype.startswith(PACKED):
        return entry.stop - entry.start
    if entry.dtype == "U8":  # two weights in a byte (`models.nf4`), or their scales
        return (entry.stop - entry.start) * (1 if keeps_packed else 2 * itemsize)
    return math.prod(entry.shape) * itemsize


def header_of(file: Path) -> Header:
    """Its container is told by its first bytes; what is amiss with it, in the words of its name.

    Raises: LoadError for a pickle, and for what is damaged.
    """
    return gguf_header(file) if is_gguf(file) or file.suffix == ".gguf" else read_header(file)
