"""4-bit weights of bitsandbytes (NF4 and FP4) as its files store them, unpacked without the package and on any device.

A matrix X is stored as X.weight (two numbers a byte), X.weight.quant_map (the sixteen values), X.weight.absmax (a scale
a block, itself packed to a byte where X.weight.nested_absmax is there), and X.weight.quant_state.bitsandbytes__nf4, a
JSON object with shape, block size and dtype. Source: bitsandbytes' QuantState.as_dict. `tests/models/test_nf4.py` holds
the numbers to bitsandbytes' own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import LoadError
from models.files.headers import TensorEntry, read_header
from models.packed import PackedWeight, Stored

STATE = ".quant_state.bitsandbytes__"
WIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
"""Endings of what is stored beside a matrix, and stays in its own dtype."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class Nf4Weight(PackedWeight):
    """A matrix of sixteen values, scaled block by block.

    Args: values: (bytes, 1), uint8, the first number of a byte in its upper half. scales: (blocks, 1), float32.
        levels: (16), float32. dtype: that it was packed from, to which bitsandbytes unpacks.
    """

    values: Tensor
    scales: Tensor
    levels: Tensor

    def __init__(self, values: Tensor, scales: Tensor, levels: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("levels", levels)
        self.shape = shape
        self._dtype = dtype

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        packed, scales, levels = (
            tensor.to(device or tensor.device, non_blocking=True) for tensor in (self.values, self.scales, self.levels)
        )
        both = torch.cat((packed >> 4, packed & 15), dim=1)
        numbers = levels[both.int()].view(scales.shape[0], -1) * scales
        return numbers.view(self.shape).to(self._dtype).to(dtype)

    def rows(self, start: int, stop: int) -> Nf4Weight:
        shape = torch.Size((stop - start, self.shape[1]))
        values, scales = (self._part(tensor, start, stop) for tensor in (self.values, self.scales))
        return Nf4Weight(values, scales, self.levels, shape, self._dtype)

    def _part(self, tensor: Tensor, start: int, stop: int) -> Tensor:
        """What of values or scales belongs to some rows."""
        columns, numbers = self.shape[1], self.shape.numel() // tensor.shape[0]  # that an entry stands for
        if start * columns % numbers or stop * columns % numbers:
            raise LoadError(f"a packed matrix of {columns} columns cannot be divided at row {start} or {stop}.")
        return tensor[start * columns // numbers : stop * columns // numbers]


def with_nf4(tensors: dict[str, Stored], label: str) -> dict[str, Stored]:
    """Packed matrices in place of what they are stored as. Raises: LoadError."""
    states = {name.partition(STATE)[0]: name for name in tensors if STATE in name}
    beside = tuple(f"{name}{ending}" for name in states for ending in WIDE)
    plain = {name: tensor for name, tensor in tensors.items() if STATE not in name and name not in set(beside)}
    for name, state in states.items():
        try:
            plain[name] = _matrix(name, _parsed(tensors[state]), tensors)
        except (KeyError, ValueError, TypeError, RuntimeError, AssertionError) as exc:
            raise LoadError(f"{label}: {name} is packed in 4 bits, but what belongs to it is damaged.") from exc
    return plain


def read_states(files: Iterable[Path], header: Mapping[str, TensorEntry]) -> dict[str, Stored]:
    """The JSON objects of packed matrices, which alone tell their shapes, as the tensors that hold them."""
    wanted = {name for name in header if STATE in name}
    states: dict[str, Stored] = {}
    for file in files if wanted else ():
        entries = read_header(file)
        with file.open("rb") as stream:
            for name in wanted & entries.keys():
                stream.seek(entries[name].start)
                raw = bytearray(stream.read(entries[name].stop - entries[name].start))
                states[name] = torch.frombuffer(raw, dtype=torch.uint8)
    return states


def _parsed(state: Stored) -> dict[str, Any]:
    assert isinstance(state, Tensor)
    values: dict[str, Any] = json.loads(bytes(state.cpu().numpy()))
    return values


def _matrix(name: str, state: dict[str, Any], tensors: dict[str, Stored]) -> Nf4Weight:
    values, scales, levels = (tensors[name + ending] for ending in ("", ".absmax", ".quant_map"))
    assert isinstance(values, Tensor) and isinstance(scales, Tensor) and isinstance(levels, Tensor)  # noqa: PT018
    if f"{name}.nested_absmax" in tensors:
        scales = _nested(name, scales, state, tensors)
    shape = torch.Size(state["shape"])
    if values.numel() * 2 != shape.numel() or scales.numel() * int(state["blocksize"]) != shape.numel():
        raise ValueError("sizes")
    return Nf4Weight(
        values.reshape(-1, 1), scales.float().reshape(-1, 1), levels.float(), shape, _DTYPES[state["dtype"]]
    )


def _nested(name: str, scales: Tensor, state: dict[str, Any], tensors: dict[str, Stored]) -> Tensor:
    """Scales that are packed to bytes with scales of their own."""
    outer, levels = tensors[f"{name}.nested_absmax"], tensors[f"{name}.nested_quant_map"]
    assert isinstance(outer, Tensor) and isinstance(levels, Tensor)  # noqa: PT018
    if scales.is_meta:
        return scales.float()
    spread = outer.float().repeat_interleave(int(state["nested_blocksize"]))[: scales.numel()]
    return levels.float()[scales.int()] * spread + float(state["nested_offset"])
