"""The header of a safetensors file: which tensors it holds, and whether the file is what it claims. No torch."""

from __future__ import annotations

import errno
import json
import math
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from models.errors import LoadError

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_HEADER, _MAX_TENSORS = 8 << 20, 50_000
"""Bytes, and names. A FLUX.1 checkpoint of everything has 0.2 MB and 1,500 names, packed several times that; LoRAs may
bring megabytes of notes. The format allows 100 MB, which would take a while to look at."""
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file. `start`, `stop`: bytes counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors by name; header, dtypes, shapes, offsets and length agree, so that reading cannot run past the end.

    Raises: LoadError. Source: the safetensors format, https://huggingface.co/docs/safetensors.
    """
    label = f"{file.parent.name}/{file.name}"
    try:
        header, data_start, size = _raw(file, label)
    except OSError as exc:
        where = f", a link to {file.readlink()}" if file.is_symlink() else ""
        raise LoadError(f"{label}{where} cannot be read ({exc.strerror or exc}); fetch the checkpoint again.") from exc
    entries = {name: _entry(label, name, value, data_start) for name, value in header.items() if name != "__metadata__"}
    end = max((entry.stop for entry in entries.values()), default=data_start)
    if end != size:
        raise LoadError(f"{label} is cut short or damaged: {size} bytes, {end} announced.")
    return entries


def _raw(file: Path, label: str) -> tuple[dict[str, Any], int, int]:
    """(header as JSON, where the data begins, bytes of the file)"""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "no regular file")  # a pipe would be waited for without end
    size = found.st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise LoadError(f"{label} is not a safetensors file{_what_else(prefix + stream.read(64))}.")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError) as exc:
            raise LoadError(f"{label} is not a safetensors file; fetch the checkpoint again.") from exc
    if not isinstance(header, dict):
        raise LoadError(f"{label} is damaged: its header is no table of tensors; fetch the checkpoint again.")
    if len(header) > _MAX_TENSORS:
        raise LoadError(f"{label} holds {len(header)} tensors, more than any model that is known here.")
    return header, 8 + length, size


def _what_else(start: bytes) -> str:
    if start.startswith(_POINTER):
        return " but a Git LFS pointer to one; run `git lfs pull`"
    if start.startswith(b"GGUF"):
        return " but GGUF; give it by itself, as --transformer FILE"
    if start.startswith((b"PK", b"\x80")):
        return " but a pickle, which is never loaded; fetch the safetensors form"
    return "; fetch the checkpoint again"


def _entry(label: str, name: str, value: Any, data_start: int) -> TensorEntry:
    """One tensor's entry, checked. Raises: LoadError."""
    entry = value if isinstance(value, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise LoadError(f"{label} is damaged: its header describes no tensor under {name!r}; fetch it again.")
    if dtype not in DTYPE_BYTES:
        raise LoadError(f"{label} holds tensors of unknown type {dtype}.")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise LoadError(f"{label} is damaged: the offsets of {name!r} do not match its shape; fetch it again.")
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
