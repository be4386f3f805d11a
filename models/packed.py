"""Weights that stay in the form that a file stores them in, and the linear layer that unpacks them as it computes.

A stored float8 or GGUF weight takes a half to a quarter of bfloat16's memory. Every forward unpacks it to the dtype of
its input and computes as any linear does, so pictures in one step change each other no more than with plain weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


class PackedWeight(nn.Module):
    """A matrix (rows, columns) in a stored form; its tensors are buffers, so they move with the module they are in."""

    shape: torch.Size
    """Of the matrix, whatever the form."""

    def unpack(self, dtype: torch.dtype) -> Tensor:
        """The matrix (rows, columns)."""
        raise NotImplementedError

    def rows(self, start: int, stop: int) -> PackedWeight:
        """Some of its rows, over the same memory."""
        raise NotImplementedError


class Float8Weight(PackedWeight):
    """float8 values, with a scale where the file has one.

    Args: values: (rows, columns). scale: scalar, (1,) or (rows, 1), float32; None for 1.
    """

    values: Tensor
    scale: Tensor | None

    def __init__(self, values: Tensor, scale: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scale", None if scale is None else scale.float())
        self.shape = values.shape

    def unpack(self, dtype: torch.dtype) -> Tensor:
        if self.scale is None:
            return self.values.to(dtype)
        return (self.values.float() * self.scale).to(dtype)

    def rows(self, start: int, stop: int) -> Float8Weight:
        scale = self.scale
        if scale is not None and scale.ndim == 2 and scale.shape[0] == self.shape[0] > 1:
            scale = scale[start:stop]
        return Float8Weight(self.values[start:stop], scale)


class GgufWeight(PackedWeight):
    """Blocks of GGUF.

    Args: blocks: (rows, bytes), uint8. kind: gguf's GGMLQuantizationType. columns: that a row has when unpacked.
        dequantize: diffusers' function for this kind: (blocks, block size, bytes a block) -> (blocks, block size).
    """

    blocks: Tensor

    def __init__(self, blocks: Tensor, kind: Any, sizes: tuple[int, int], dequantize: Callable[..., Tensor]) -> None:
        super().__init__()
        self.register_buffer("blocks", blocks)
        self._kind, self._sizes, self._dequantize = kind, sizes, dequantize
        block, block_bytes = sizes
        self.shape = torch.Size((blocks.shape[0], blocks.shape[1] // block_bytes * block))

    def unpack(self, dtype: torch.dtype) -> Tensor:
        block, block_bytes = self._sizes
        values = self._dequantize(self.blocks.reshape(-1, block_bytes), block, block_bytes)
        return values.reshape(self.shape).to(dtype)

    def rows(self, start: int, stop: int) -> GgufWeight:
        return GgufWeight(self.blocks[start:stop], self._kind, self._sizes, self._dequantize)


class PackedLinear(nn.Module):
    """x W^T + b with W unpacked for the product, in the dtype of x."""

    bias: Tensor | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns of W) -> (..., rows of W)."""
        return nn.functional.linear(x, self.weight.unpack(x.dtype), self.bias)


def is_packed(module: nn.Module) -> bool:
    """Whether any of its layers keeps its weight in a stored form."""
    return any(isinstance(layer, PackedLinear) for layer in module.modules())


Stored = Tensor | PackedWeight


def unpacked(stored: Stored, dtype: torch.dtype) -> Tensor:
    """A plain tensor."""
    return stored.unpack(dtype) if isinstance(stored, PackedWeight) else stored


def rows(stored: Stored, start: int, stop: int) -> Stored:
    """Some rows of a matrix or a vector."""
    return stored.rows(start, stop) if isinstance(stored, PackedWeight) else stored[start:stop]
