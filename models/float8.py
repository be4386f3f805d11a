"""Linear layers in float8: both factors of the product rounded to float8_e4m3fn, with one scale a row.

What torchao calls `Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())`, over the same kernel
(`torch._scaled_mm`), as a plain module that also runs, and is tested, without a GPU. A row's scale is its own, so no
picture rescales its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FLOAT8).max
_MULTIPLE = 16
"""The kernel takes widths that are multiples of this; others stay as they are."""

M = TypeVar("M", bound=nn.Module)
Quantize = Callable[[Tensor], "Rows"]


class Rows(NamedTuple):
    """Float8 values (R, K) and float32 scales (R, 1): values * scales is what was rounded."""

    values: Tensor
    scale: Tensor


class Float8Linear(nn.Module):
    """x W^T + b with x and W in float8, accumulated in float32; the result has x's dtype."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", linear.bias)

    def forward(self, x: Tensor | Rows) -> Tensor:
        """(..., in_features) -> (..., out_features) in x's dtype; of rows that are float8 already, bfloat16."""
        if isinstance(x, Rows):
            return self._product(x)
        if not x.numel():  # references are passed without a text, and the kernel takes no empty list
            return x.new_empty(*x.shape[:-1], self.weight.shape[0])
        rows = x.reshape(-1, x.shape[-1])
        quantize = _fused_quantize(x.device, x.dtype) if x.is_cuda else quantize_rows
        return self._product(quantize(rows)).to(x.dtype).view(*x.shape[:-1], -1)

    def _product(self, rows: Rows) -> Tensor:
        product = _kernel if rows.values.is_cuda else _emulated
        return product(rows.values, rows.scale, self.weight, self.scale, self.bias)


def quantize_rows(x: Tensor) -> Rows:
    """(R, K) -> its rows, each rounded with a scale of its own."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / _LARGEST
    return Rows((x.float() / scale).clamp_(-_LARGEST, _LARGEST).to(FLOAT8), scale)


@lru_cache
def _fused_quantize(device: torch.device, dtype: torch.dtype) -> Quantize:
    """`quantize_rows` in one pass over x instead of seven, where Triton runs on this device and is right there."""
    try:
        fused: Quantize = import_module("models.float8_kernel").quantize_rows
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn((7, 320), generator=generator, device=device).to(dtype)
        (ours, our_scale), (theirs, their_scale) = fused(x), quantize_rows(x)
        one_step = float((ours.float() - theirs.float()).abs().max()) <= _LARGEST / 14
        is_right = one_step and torch.allclose(our_scale, their_scale, rtol=1e-5)
    except Exception:  # no compiler, no triton: torch can do the same work
        is_right = False
    return fused if is_right else quantize_rows


def _kernel(rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The device's own product; for scales by row it gives bfloat16 only."""
    return torch._scaled_mm(
        rows,
        weight.t(),
        row_scale,
        weight_scale,
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=rows.is_cuda,
    )


def _emulated(rows: Tensor, row_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """The same product in float32, for devices without one."""
    product = (rows.float() @ weight.float().t()).mul_(row_scale).mul_(weight_scale)
    return product if bias is None else product.add_(bias)


def to_float8(module: nn.Module, is_chosen: Callable[[str], bool]) -> None:
    """Put a Float8Linear in place of every linear whose name is chosen and whose widths the kernel takes."""
    for name, linear in chosen_linears(module, is_chosen).items():
        module.set_submodule(name, Float8Linear(linear))


def chosen_linears(module: nn.Module, is_chosen: Callable[[str], bool]) -> dict[str, nn.Linear]:
    """Linears by name that are chosen and whose widths the kernel takes."""
    return {
        name: linear
        for name, linear in module.named_modules()
        if isinstance(linear, nn.Linear) and is_chosen(name) and _fits(linear)
    }


def is_rounded(module: nn.Module) -> bool:
    """Whether some of its linears are float8."""
    return any(isinstance(part, Float8Linear) for part in module.modules())


def share(module: M) -> M:
    """A copy whose tensors are the original's own: parts of it may be replaced, and the rest costs no memory."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _fits(linear: nn.Linear) -> bool:
    return linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0
