"""Tensors from safetensors files: mapped, for what goes on to a device at once, or read into memory of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.building import DTYPES
from models.files.headers import TensorEntry, read_header
from models.packed import FLOAT8


def mapped(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of these files, their pages read when they are first touched.

    If a file is overwritten meanwhile, touching them ends the process (SIGBUS): only for a short while.
    """
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def read(
    files: Iterable[Path],
    wanted: Collection[str],
    dtype_of: Callable[[str], torch.dtype],
    read_bytes: Callable[[int], None],
) -> dict[str, Tensor]:
    """The wanted tensors of these files in memory of their own, every byte read once and in order.

    Args: dtype_of: what floating-point tensors become as they are read, but for float8, which stays.
        read_bytes: is told how many have been read.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        entries = sorted(read_header(file).items(), key=lambda item: item[1].start)
        with file.open("rb", buffering=0) as stream:
            for name, entry in ((name, entry) for name, entry in entries if name in wanted):
                tensor = _one(stream.readinto, stream.seek, entry)
                stays = not tensor.is_floating_point() or tensor.dtype in FLOAT8
                tensors[name] = tensor if stays else tensor.to(dtype_of(name))
                read_bytes(entry.stop - entry.start)
    return tensors


def _one(readinto: Callable[[memoryview], int | None], seek: Callable[[int], int], entry: TensorEntry) -> Tensor:
    raw = torch.empty(entry.stop - entry.start, dtype=torch.uint8)
    view = memoryview(raw.numpy().data)
    seek(entry.start)
    while view:
        count = readinto(view)
        if not count:
            raise OSError("the file became shorter while it was read")
        view = view[count:]
    return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)
