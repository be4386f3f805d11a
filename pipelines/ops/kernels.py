"""The small operations as Triton kernels: one read and one write of the tokens each, where torch needs three to six.

Every program handles whole tokens with a block size that follows from the width alone, so a token's result depends on
nothing that stands beside it. All arithmetic is float32; results are rounded once, where torch rounds after every step.
Needs triton; on a CPU only its interpreter (TRITON_INTERPRET=1 before import) runs them.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipelines.ops.ops import Ops


@triton.jit  # type: ignore[untyped-decorator]
def _norm_modulate_kernel(tokens, out, rows, scale, shift, row_stride, width, eps, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    x = tl.load(tokens + token * width + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / width
    centred = tl.where(inside, x - mean, 0.0)
    normed = centred / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    at = tl.load(rows + token).to(tl.int64) * row_stride + columns
    gain = tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * width + columns, (normed * gain + offset).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate_add_kernel(tokens, update, rows, gate, row_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = token * width + columns
    factor = tl.load(gate + tl.load(rows + token).to(tl.int64) * row_stride + columns, mask=inside).to(tl.float32)
    residual = tl.load(tokens + at, mask=inside).to(tl.float32)
    result = residual + factor * tl.load(update + at, mask=inside).to(tl.float32)
    tl.store(update + at, result.to(update.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_rotate_kernel(  # type: ignore[no-untyped-def]
    x, out, weight, rope, token_stride, head_stride, heads, half, eps, HEADS: tl.constexpr, HALF: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (pair < half)
    at = x + token * token_stride + head * head_stride + 2 * pair
    even = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
    root = tl.sqrt(tl.sum(even * even + odd * odd, axis=1) / (2 * half) + eps)[:, None]
    even = even / root * tl.load(weight + 2 * pair, mask=pair < half, other=0.0).to(tl.float32)
    odd = odd / root * tl.load(weight + 2 * pair + 1, mask=pair < half, other=0.0).to(tl.float32)
    angle = rope + (token * half + pair) * 2
    cos = tl.load(angle, mask=pair < half, other=0.0)
    sin = tl.load(angle + 1, mask=pair < half, other=0.0)
    to = out + (token * heads + head) * 2 * half + 2 * pair
    tl.store(to, (even * cos - odd * sin).to(out.dtype.element_ty), mask=inside)
    tl.store(to + 1, (even * sin + odd * cos).to(out.dtype.element_ty), mask=inside)


def _norm_modulate(tokens: Tensor, norm: Any, index: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    count, width = tokens.shape
    tokens, out = tokens.contiguous(), torch.empty_like(tokens, memory_format=torch.contiguous_format)
    block = triton.next_power_of_2(width)
    _norm_modulate_kernel[(count,)](
        tokens, out, index, scale, shift, scale.stride(0), width, norm.eps, BLOCK=block, num_warps=_warps(block)
    )
    return out


def _gate_add(tokens: Tensor, index: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    count, width = tokens.shape
    tokens, update = tokens.contiguous(), update.contiguous()
    block = triton.next_power_of_2(width)
    _gate_add_kernel[(count,)](tokens, update, index, gate, gate.stride(0), width, BLOCK=block, num_warps=_warps(block))
    return update


def _norm_rotate(x: Tensor, norm: Any, rope: Tensor) -> Tensor:
    count, heads, width = x.shape
    out = torch.empty((count, heads, width), dtype=x.dtype, device=x.device)
    tile = triton.next_power_of_2(heads), triton.next_power_of_2(width // 2)
    _norm_rotate_kernel[(count,)](
        x,
        out,
        norm.weight,
        rope,
        x.stride(0),
        x.stride(1),
        heads,
        width // 2,
        _eps(norm, x.dtype),
        HEADS=tile[0],
        HALF=tile[1],
        num_warps=_warps(tile[0] * tile[1]),
    )
    return out


def _eps(norm: Any, dtype: torch.dtype) -> float:
    """torch's RMSNorm takes the smallest step of the dtype where it was given none."""
    return float(torch.finfo(dtype).eps if norm.eps is None else norm.eps)


def _warps(block: int) -> int:
    """Sixteen values a thread, within what a GPU can start."""
    return min(16, max(1, block // 512))


TRITON = Ops("triton", attrgetter("index"), _norm_modulate, _gate_add, _norm_rotate)
