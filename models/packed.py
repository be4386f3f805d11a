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

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """The matrix (rows, columns). Args: device: None is where its tensors are."""
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

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        values = self.values.to(device or self.values.device, non_blocking=True)
        if self.scale is None:
            return values.to(dtype)
        return (values.float() * self.scale.to(values.device)).to(dtype)

    def rows(self, start: int, stop: int) -> Float8Weight:
        scale = self.scale
        if scale is not None and scale.ndim == 2 and scale.shape[0] == self.shape[0] > 1:
            scale = scale[start:stop]
        return Float8Weight(self.values[start:stop], scale)


class GgufWeight(PackedWeight):
    """Blocks of GGUF.

    Args:
        blocks: (rows, bytes), uint8. kind: gguf's GGMLQuantizationType. sizes: values and bytes of a block.
        dequantize: diffusers' function for this kind: (blocks, block size, bytes a block) -> (blocks, block size).
        shape: when unpacked; None for as many rows. Blocks may run on over rows that are narrower.
    """

    blocks: Tensor

    def __init__(
        self,
        blocks: Tensor,
        kind: Any,
        sizes: tuple[int, int],
        dequantize: Callable[..., Tensor],
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("blocks", blocks)
        self._kind, self._sizes, self._dequantize = kind, sizes, dequantize
        block, block_bytes = sizes
        self.shape = torch.Size(shape or (blocks.shape[0], blocks.shape[1] // block_bytes * block))

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        block, block_bytes = self._sizes
        blocks = self.blocks.to(device or self.blocks.device, non_blocking=True)
        values = self._dequantize(blocks.reshape(-1, block_bytes), block, block_bytes)
        return values.reshape(self.shape).to(dtype)

    def rows(self, start: int, stop: int) -> GgufWeight:
        return GgufWeight(self.blocks[start:stop], self._kind, self._sizes, self._dequantize)


Stored = Tensor | PackedWeight


class HostWeight(PackedWeight):
    """A matrix that stays in host memory wherever its module goes, and passes to the device for each product.

    Args: stored: on the host.
    """

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self._held = (stored,)  # neither buffer nor submodule: `module.to` must not find it
        self.shape = stored.shape

    def unpack(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        (stored,) = self._held
        if isinstance(stored, PackedWeight):
            return stored.unpack(dtype, device)
        return stored.to(device or stored.device, dtype, non_blocking=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> HostWeight:
        return self  # what never changes is shared by copies of its module


class PackedLinear(nn.Module):
    """x W^T + b with W unpacked for the product, in the dtype of x; and what an adapter adds to it for good."""

    bias: Tensor | None
    down: Tensor | None
    up: Tensor | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)
        self.register_buffer("down", None)
        self.register_buffer("up", None)

    def add(self, down: Tensor, up: Tensor) -> None:
        """From now on add x down^T up^T to every result. down: (rank, columns of W), up: (rows of W, rank)."""
        assert self.down is None, "one adapter is held beside a weight"
        self.down, self.up = down, up

    @property
    def out_features(self) -> int:
        """As a plain linear has it."""
        return int(self.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns of W) -> (..., rows of W)."""
        result = nn.functional.linear(x, self.weight.unpack(x.dtype, x.device), self.bias)
        if self.down is None or self.up is None:
            return result
        return result + nn.functional.linear(nn.functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


def is_packed(module: nn.Module) -> bool:
    """Whether any of its layers on the device keeps its weight in a stored form."""
    return any(isinstance(each, PackedWeight) and not isinstance(each, HostWeight) for each in module.modules())


def unpacked(stored: Stored, dtype: torch.dtype) -> Tensor:
    """A plain tensor."""
    return stored.unpack(dtype) if isinstance(stored, PackedWeight) else stored


def rows(stored: Stored, start: int, stop: int) -> Stored:
    """Some rows of a matrix or a vector."""
    return stored.rows(start, stop) if isinstance(stored, PackedWeight) else stored[start:stop]
