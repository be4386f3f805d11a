"""Tensors from files of weights: mapped, for what goes on to a device at once, or read into memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from io import RawIOBase
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.building import DTYPES
from models.files.gguf import KIND, is_gguf
from models.files.headers import TensorEntry
from models.packed import FLOAT8, Stored
from models.single.gguf import gguf_mapped, gguf_matrix
from models.single.header import header_of


def mapped(files: Iterable[Path]) -> dict[str, Stored]:
    """All tensors of these files, their pages read when they are first touched.

    If a file is overwritten meanwhile, touching them ends the process (SIGBUS): only for a short while.
    """
    return {name: stored for file in files for name, stored in _mapped(file).items()}


def _mapped(file: Path) -> dict[str, Stored]:
    return gguf_mapped(file) if is_gguf(file) else dict(load_file(file))


def read(
    files: Iterable[Path],
    wanted: Collection[str],
    dtype_of: Callable[[str], torch.dtype | None],
    read_bytes: Callable[[int], None],
) -> dict[str, Stored]:
    """The wanted tensors of these files in memory of their own, every byte read once and in order.

    Args: dtype_of: what floating-point tensors become as they are read, None for what they are; float8 stays.
        read_bytes: is told how many have been read.
    """
    tensors: dict[str, Stored] = {}
    for file in files:
        chosen = sorted(((n, e) for n, e in header_of(file).items() if n in wanted), key=lambda item: item[1].start)
        becomes = {name: _becomes(entry, dtype_of(name)) for name, entry in chosen}
        # What changes its dtype passes through one piece of memory: freed pieces of many sizes would stay with the
        # process (float16 to bfloat16 took 1.24 times the file).
        passage = torch.empty(max((_size(e) for n, e in chosen if becomes[n]), default=0), dtype=torch.uint8)
        with file.open("rb", buffering=0) as stream:
            for name, entry in chosen:
                dtype, size = becomes[name], _size(entry)
                raw = torch.empty(size, dtype=torch.uint8) if dtype is None else passage[:size]
                _fill(raw, stream, entry.start)
                tensors[name] = _stored(name, entry, raw, dtype)
                read_bytes(size)
    return tensors


def _becomes(entry: TensorEntry, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that a tensor is converted to; None if it stays as it lies in the file."""
    stored = DTYPES.get(entry.dtype)
    stays = stored is None or not stored.is_floating_point or stored in FLOAT8 or stored == dtype
    return None if stays else dtype


def _stored(name: str, entry: TensorEntry, raw: Tensor, dtype: torch.dtype | None) -> Stored:
    if entry.dtype.startswith(KIND):
        return gguf_matrix(name, entry, raw)
    tensor = raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
    return tensor if dtype is None else tensor.to(dtype)


def _size(entry: TensorEntry) -> int:
    return entry.stop - entry.start


def _fill(raw: Tensor, stream: RawIOBase, start: int) -> None:
    view = memoryview(raw.numpy().data)
    stream.seek(start)
    while view:
        count = stream.readinto(view)
        if not count:
            raise OSError("the file became shorter while it was read")
        view = view[count:]
