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

from models.float8 import Float8Linear, Rows
from models.float8_kernel import empty_rows, store_float8, warps
from pipelines.ops.ops import Heads, Norms, Ops

_HEADS = 8
"""Heads a program: with four warps and 128 values a head, every thread reads and writes 16 bytes at a time."""

_COLUMNS = 1024
"""Columns a program of what treats every value alone."""


@triton.jit  # type: ignore[untyped-decorator]
def _norm_modulate_kernel(  # type: ignore[no-untyped-def]
    tokens, out, out_scale, rows, scale, shift, row_stride, width, eps, IS_FLOAT8: tl.constexpr, BLOCK: tl.constexpr
):
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
    result = normed * gain + offset
    if IS_FLOAT8:
        store_float8(result, out, out_scale, token, columns, inside, width)
    else:
        tl.store(out + token * width + columns, result.to(out.dtype.element_ty), mask=inside)


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
def _rotated(x, weight, cos, sin, width, eps, HEADS: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """RMSNorm over the last axis of (HEADS, WIDTH), then every pair of neighbours rotated."""
    x = x.to(tl.float32)
    root = tl.sqrt(tl.sum(x * x, axis=1) / width + eps)[:, None]
    even, odd = tl.split(tl.reshape(x / root * weight, (HEADS, WIDTH // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (HEADS, WIDTH))


@triton.jit  # type: ignore[untyped-decorator]
def _heads_kernel(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    query_out,
    key_out,
    value_out,
    query_weight,
    key_weight,
    rope,
    places,
    query_stride,
    key_stride,
    value_stride,
    query_eps,
    key_eps,
    heads,
    width,
    IS_MOVED: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, WIDTH)
    inside = (head < heads) & (column < width)[None, :]
    at = head * width + column[None, :]
    # Pairs of (cos, sin) lie side by side, as wide as a head: read whole, for a thread's accesses to be 16 bytes each.
    angles = tl.load(rope + token * width + column, mask=column < width, other=0.0)
    cos, sin = tl.split(tl.reshape(angles, (1, WIDTH // 2, 2)))
    query_gain = tl.load(query_weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    key_gain = tl.load(key_weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    q = tl.load(query + token * query_stride + at, mask=inside, other=0.0)
    k = tl.load(key + token * key_stride + at, mask=inside, other=0.0)
    place = tl.load(places + token).to(tl.int64) if IS_MOVED else token
    to = place * heads * width + at
    if IS_MOVED:
        tl.store(value_out + to, tl.load(value + token * value_stride + at, mask=inside), mask=inside)
    q = _rotated(q, query_gain, cos, sin, width, query_eps, HEADS, WIDTH)
    k = _rotated(k, key_gain, cos, sin, width, key_eps, HEADS, WIDTH)
    tl.store(query_out + to, q.to(query_out.dtype.element_ty), mask=inside)
    tl.store(key_out + to, k.to(key_out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu(x):  # type: ignore[no-untyped-def]
    """GELU by tanh: tanh(y) is 2 sigmoid(2 y) - 1."""
    # Bounded below, where it is 0 anyway: exp would overflow.
    return x * tl.sigmoid(tl.maximum(1.5957691216057308 * (x + 0.044715 * x * x * x), -80.0))


@triton.jit  # type: ignore[untyped-decorator]
def _join_gelu_kernel(attended, wide, attended_width, wide_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_attended = column < attended_width
    is_wide = (column >= attended_width) & (column < width)
    at = wide + token * wide_stride + column
    left = tl.load(attended + token * attended_width + column, mask=is_attended, other=0.0)
    right = _gelu(tl.load(at, mask=is_wide, other=0.0).to(tl.float32)).to(wide.dtype.element_ty)
    tl.store(at, tl.where(is_attended, left, right), mask=column < width)


@triton.jit  # type: ignore[untyped-decorator]
def _join_gelu_float8_kernel(  # type: ignore[no-untyped-def]
    attended, wide, out, scale, attended_width, wide_stride, width, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    is_attended = column < attended_width
    is_wide = (column >= attended_width) & (column < width)
    left = tl.load(attended + token * attended_width + column, mask=is_attended, other=0.0).to(tl.float32)
    right = _gelu(tl.load(wide + token * wide_stride + column, mask=is_wide, other=0.0).to(tl.float32))
    store_float8(left + right, out, scale, token, column, column < width, width)


def _norm_modulate(
    tokens: Tensor, norm: Any, index: Tensor, scale: Tensor, shift: Tensor, linear: Any
) -> Tensor | Rows:
    count, width = tokens.shape
    tokens, block = tokens.contiguous(), triton.next_power_of_2(width)
    is_float8 = isinstance(linear, Float8Linear)
    rows = empty_rows(count, width, tokens.device) if is_float8 else None
    out = torch.empty_like(tokens) if rows is None else rows.values
    _norm_modulate_kernel[(count,)](
        tokens,
        out,
        None if rows is None else rows.scale,
        index,
        scale,
        shift,
        scale.stride(0),
        width,
        norm.eps,
        IS_FLOAT8=is_float8,
        BLOCK=block,
        num_warps=warps(block),
    )
    return out if rows is None else rows


def _gate_add(tokens: Tensor, index: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    count, width = tokens.shape
    tokens, update = tokens.contiguous(), update.contiguous()
    block = triton.next_power_of_2(width)
    _gate_add_kernel[(count,)](tokens, update, index, gate, gate.stride(0), width, BLOCK=block, num_warps=warps(block))
    return update


def _joint_heads(
    texts: Heads, images: Heads, text_norms: Norms, image_norms: Norms, ropes: tuple[Tensor, Tensor], places: Any
) -> Heads:
    count, *shape = len(texts[0]) + len(images[0]), *texts[0].shape[1:]
    query, key, value = (texts[0].new_empty(count, *shape) for _ in range(3))
    _write_heads(texts, text_norms, ropes[0], (query, key, value), places[0])
    _write_heads(images, image_norms, ropes[1], (query, key, value), places[1])
    return query, key, value


def _norm_rotate(heads: Heads, norms: Norms, rope: Tensor) -> Heads:
    query, key, value = heads
    rotated = query.new_empty(query.shape), key.new_empty(key.shape)
    _write_heads(heads, norms, rope, (*rotated, value), None)
    return *rotated, value


def _write_heads(heads: Heads, norms: Norms, rope: Tensor, out: Heads, places: Tensor | None) -> None:
    """Queries and keys normalised and rotated; where they move to `places`, the values with them."""
    query, key, value = (x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous() for x in heads)
    count, head_count, width = query.shape
    tile = min(_HEADS, triton.next_power_of_2(head_count))
    _heads_kernel[(count, triton.cdiv(head_count, tile))](
        query,
        key,
        value,
        *out,
        norms[0].weight,
        norms[1].weight,
        rope,
        places,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        _eps(norms[0], query.dtype),
        _eps(norms[1], key.dtype),
        head_count,
        width,
        IS_MOVED=places is not None,
        HEADS=tile,
        WIDTH=triton.next_power_of_2(width),
        num_warps=4,
    )


def _join_gelu(attended: Tensor, wide: Tensor, linear: Any) -> Tensor | Rows:
    (count, width), attended = wide.shape, attended.contiguous()
    if isinstance(linear, Float8Linear):
        rows, block = empty_rows(count, width, wide.device), triton.next_power_of_2(width)
        _join_gelu_float8_kernel[(count,)](
            attended, wide, *rows, attended.shape[1], wide.stride(0), width, BLOCK=block, num_warps=warps(block)
        )
        return rows
    grid = count, triton.cdiv(width, _COLUMNS)
    _join_gelu_kernel[grid](attended, wide, attended.shape[1], wide.stride(0), width, BLOCK=_COLUMNS, num_warps=4)
    return wide


def _eps(norm: Any, dtype: torch.dtype) -> float:
    """torch's RMSNorm takes the smallest step of the dtype where it was given none."""
    return float(torch.finfo(dtype).eps if norm.eps is None else norm.eps)


TRITON = Ops(
    "triton",
    attrgetter("index"),
    attrgetter("places"),
    _norm_modulate,
    _gate_add,
    _norm_rotate,
    _joint_heads,
    _join_gelu,
)
