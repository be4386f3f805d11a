"""Group norm and SiLU over pictures that lie channels last: two reads and one write, as Triton kernels.

Sums are added in a fixed order, so a picture comes out the same every time. Needs triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 8192
"""Values a program holds at a time."""

_TURNS = 8
"""Times that a program which adds up does so: enough programs for every processor of a GPU, and few results to add."""


@triton.jit  # type: ignore[untyped-decorator]
def _sums_kernel(  # type: ignore[no-untyped-def]
    x, sums, pixels, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, TURNS: tl.constexpr
):
    picture, chunk = tl.program_id(1).to(tl.int64), tl.program_id(0)
    column, group = tl.arange(0, CHANNELS), tl.arange(0, GROUPS)
    totals = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    for turn in range(TURNS):
        row = (chunk * TURNS + turn) * ROWS + tl.arange(0, ROWS)[:, None]
        at = (picture * pixels + row) * CHANNELS + column[None, :]
        value = tl.load(x + at, mask=row < pixels, other=0.0).to(tl.float32)
        totals += value
        squares += value * value
    total, square = tl.sum(totals, axis=0), tl.sum(squares, axis=0)
    to = sums + (picture * tl.num_programs(0) + chunk) * 2 * GROUPS + group
    tl.store(to, tl.sum(tl.reshape(total, (GROUPS, CHANNELS // GROUPS)), axis=1))
    tl.store(to + GROUPS, tl.sum(tl.reshape(square, (GROUPS, CHANNELS // GROUPS)), axis=1))


@triton.jit  # type: ignore[untyped-decorator]
def _apply_kernel(  # type: ignore[no-untyped-def]
    x,
    out,
    sums,
    weight,
    bias,
    pixels,
    eps,
    CHANNELS: tl.constexpr,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
):
    picture = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, CHANNELS)
    group = picture * 2 * GROUPS + column // (CHANNELS // GROUPS)
    count = pixels.to(tl.float32) * (CHANNELS // GROUPS)
    mean = tl.load(sums + group) / count
    variance = tl.maximum(tl.load(sums + group + GROUPS) / count - mean * mean, 0.0)
    gain = tl.load(weight + column).to(tl.float32) / tl.sqrt(variance + eps)
    offset = tl.load(bias + column).to(tl.float32) - mean * gain
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at = (picture * pixels + row) * CHANNELS + column[None, :]
    value = tl.load(x + at, mask=row < pixels, other=0.0).to(tl.float32) * gain[None, :] + offset[None, :]
    activated = value * tl.sigmoid(tl.maximum(value, -80.0))
    tl.store(out + at, activated.to(out.dtype.element_ty), mask=row < pixels)


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """See `models.group_norm.Kernel`."""
    count, channels, height, width = x.shape
    pixels, rows = height * width, max(1, _VALUES // channels)
    chunks = triton.cdiv(pixels, rows * _TURNS)
    sums = torch.empty((count, chunks, 2 * groups), dtype=torch.float32, device=x.device)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    sizes = {"CHANNELS": channels, "GROUPS": groups, "ROWS": rows}
    _sums_kernel[(chunks, count)](x, sums, pixels, **sizes, TURNS=_TURNS, num_warps=8)
    added = sums.sum(dim=1)
    _apply_kernel[(triton.cdiv(pixels, rows), count)](x, out, added, weight, bias, pixels, eps, **sizes, num_warps=8)
    return out
