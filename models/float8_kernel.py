"""Rows to float8 as a Triton kernel: one read and one write, where torch needs seven passes.

A row is one program, so its result depends on nothing that stands beside it. Needs triton, and a GPU of compute
capability 8.9 or more (or triton's interpreter).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.float8 import FLOAT8, Rows

_LARGEST = tl.constexpr(448.0)


@triton.jit
def store_float8(x, out, scale, row, column, inside, width):  # type: ignore[no-untyped-def]
    """Round one row of float32 values with a scale of its own; what is outside must be 0."""
    step = tl.maximum(tl.max(tl.abs(x), axis=0), 1e-12) / _LARGEST
    rounded = tl.minimum(tl.maximum(x / step, -_LARGEST), _LARGEST)
    tl.store(out + row * width + column, rounded.to(out.dtype.element_ty), mask=inside)
    tl.store(scale + row, step)


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_kernel(x, out, scale, row_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    values = tl.load(x + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    store_float8(values, out, scale, row, column, inside, width)


def quantize_rows(x: Tensor) -> Rows:
    """(R, K), contiguous along K -> its rows, each rounded with a scale of its own."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows = empty_rows(x.shape[0], x.shape[1], x.device)
    block = triton.next_power_of_2(x.shape[1])
    _quantize_kernel[(len(x),)](x, *rows, x.stride(0), x.shape[1], BLOCK=block, num_warps=warps(block))
    return rows


def empty_rows(count: int, width: int, device: torch.device) -> Rows:
    return Rows(
        torch.empty((count, width), dtype=FLOAT8, device=device),
        torch.empty((count, 1), dtype=torch.float32, device=device),
    )


def warps(block: int) -> int:
    """Sixteen values a thread, within what a GPU can start."""
    return min(16, max(1, block // 512))
