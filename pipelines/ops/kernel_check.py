"""Takes Triton's operations only where they pass a check against torch's, on this device, in this dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

import torch
from torch import Tensor, nn

from pipelines.ops.ops import REFERENCE, Ops, TokenRows


def checked_triton(
    heads: int, head_dim: int, device: torch.device, dtype: torch.dtype, note: Callable[[str], None]
) -> Ops:
    """Triton's operations if they pass on this device; else torch's, and `note` is told why."""
    try:
        triton: Ops = import_module("pipelines.ops.kernels").TRITON
        wrong = [name for name, is_right in _verdicts(triton, heads, head_dim, device, dtype) if not is_right]
    except Exception as exc:  # whatever a compiler, driver or missing package says, torch can do the same work
        note(f"kernels torch instead of triton: {type(exc).__name__}: {str(exc).splitlines()[0] if str(exc) else ''}")
        return REFERENCE
    if wrong:
        note(f"kernels torch instead of triton: {', '.join(wrong)} came out wrong on {device}")
        return REFERENCE
    return triton


def _verdicts(
    ops: Ops, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> Iterable[tuple[str, bool]]:
    """Every operation on random tokens: is it as near to float64 as torch's own in this dtype?"""
    lengths, width = (5, 3, 3), heads * head_dim
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    tokens, update, mod = noise(sum(lengths), width), noise(sum(lengths), width), noise(len(lengths), 3 * width)
    scale, shift, gate = mod.chunk(3, dim=-1)  # not contiguous, as in a step
    x = noise(sum(lengths), 3 * width)[:, width : 2 * width].unflatten(-1, (heads, head_dim))
    angles = torch.rand((sum(lengths), 1, head_dim // 2), generator=generator, device=device) * 6.3
    rope = torch.stack((angles.cos(), angles.sin()), dim=-1)
    layer = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    rms = nn.RMSNorm(head_dim, eps=1e-6, device=device, dtype=dtype).requires_grad_(False)
    rms.weight.copy_(noise(head_dim))
    rows = TokenRows(lengths, device)

    def results(ops: Ops, to: torch.dtype, rms: nn.Module) -> dict[str, Tensor]:
        form = ops.rows(rows)
        return {
            "norm_modulate": ops.norm_modulate(tokens.to(to), layer, form, scale.to(to), shift.to(to)),
            "gate_add": ops.gate_add(tokens.to(to), form, gate.to(to), update.to(to).clone()),
            "norm_rotate": ops.norm_rotate(x.to(to), rms, rope),
        }

    theirs, ours = results(ops, dtype, rms), results(REFERENCE, dtype, rms)
    for name, exact in results(REFERENCE, torch.float64, rms.to(torch.float64)).items():
        allowed = 2 * _distance(ours[name], exact) + 16 * torch.finfo(dtype).eps
        yield name, _distance(theirs[name], exact) <= allowed


def _distance(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).abs().max())
